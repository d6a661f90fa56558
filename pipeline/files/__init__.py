"""Reads a user's CSV and Parquet files, and publishes their readings to the readings topic."""
