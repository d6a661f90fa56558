"""Broken bytes for whatever reads bytes: mutations of good ones, seeded, for as long as one likes."""
