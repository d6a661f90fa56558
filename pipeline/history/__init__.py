"""The history table, and the ingest of readings from Kafka into it."""
