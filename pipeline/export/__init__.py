"""Exports topics to tables that other tools read: Delta Lake or Parquet, with offsets, each record once."""
