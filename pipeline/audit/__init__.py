"""Offline audits of the topics: which forecasts are missing, repeated or different. Start with ``verify``."""
