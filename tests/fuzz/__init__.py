"""Fuzzing: seeded mutations of valid bytes for every function that reads bytes."""
