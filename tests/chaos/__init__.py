"""The forecaster broken on purpose by kills, stalls, rebalances, broker deaths and promotions; then all is checked."""
