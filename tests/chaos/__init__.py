"""Kills, stalls, rebalances, broker deaths and promotions, followed by an audit of every forecast and state."""
