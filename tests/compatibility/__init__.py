"""Compatibility with an earlier commit: golden files that today's code must read, and a live fleet of both commits."""
