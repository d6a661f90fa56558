"""The states of all sensors of a forecaster: their table in memory, the model that steps them, and their records."""
