"""Hypothesis for any machine; tests on servers do not use it, so their processes do not import it."""

import hypothesis

# Examples have no time limit, because a busy machine draws and runs them slowly.
hypothesis.settings.register_profile(
    "any machine", suppress_health_check=[hypothesis.HealthCheck.too_slow], deadline=None
)
hypothesis.settings.load_profile("any machine")
