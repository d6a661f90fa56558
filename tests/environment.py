"""Environment variables that pass settings to another process."""

import json
import os

from pipeline.settings import Settings


def environment(settings: Settings) -> dict[str, str]:
    """The environment of this process, with variables from which ``load_settings`` reads equal settings."""
    chosen = settings.model_dump(mode="json", exclude_unset=True)
    return {name: value for name, value in os.environ.items() if not name.startswith("STREAMGRU_")} | {
        f"STREAMGRU_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in chosen.items()
    }
