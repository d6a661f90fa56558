"""Back-tests: a model trained and scored beside the baselines, drawn, and judged by the gate."""
