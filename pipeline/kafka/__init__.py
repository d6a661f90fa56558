"""Kafka: the clients and their settings, the topics, and records read and written by the batch."""
