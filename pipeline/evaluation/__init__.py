"""Back-tests: train a model, score it against the baselines, draw plots, and decide by the gate."""
