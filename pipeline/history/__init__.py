"""The history table, and taking readings from Kafka into it."""
