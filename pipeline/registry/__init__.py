"""The MLflow registry: versions of the model, the runs that made them, and which version an alias names."""
