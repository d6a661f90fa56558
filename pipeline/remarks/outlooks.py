"""Remarks about outlooks: values that the settings drop."""

from pipeline.settings import Settings
from pipeline.text.plural import counted


def outlook_remarks(settings: Settings) -> list[str]:
    """A sentence if an outlook cannot reach the end of a forecast."""
    config, horizon_steps = settings.outlook_config, settings.horizon_steps
    if config is None or config.steps >= horizon_steps:
        return []
    kept = counted(config.steps, "cadence")
    lost = (
        f"outlooks.steps keeps {kept} of an outlook from its first time on and drops its later values, so the last "
        "steps of a forecast see no covariate; "
        f"set it to horizon_steps ({horizon_steps:,}) or more if outlooks are as long"
    )
    return [lost]
