"""Readings in a user's CSV and Parquet files: reading them, and publishing them to the readings topic."""
