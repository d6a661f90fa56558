"""Settings as the environment of a process of its own."""

import json
import os

from pipeline.settings import Settings


def environment(settings: Settings) -> dict[str, str]:
    """This process's environment, and in it what ``load_settings`` makes equal settings of."""
    chosen = settings.model_dump(mode="json", exclude_unset=True)
    return {name: value for name, value in os.environ.items() if not name.startswith("STREAMGRU_")} | {
        f"STREAMGRU_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in chosen.items()
    }
