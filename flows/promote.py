"""The promote flow: a promotion or a rollback, from Prefect's pages or an automation."""

from pathlib import Path

from prefect import flow, get_run_logger

from flows.run_settings import load_run_settings
from flows.user_errors import user_errors_as_state
from pipeline.registry.promotion import Promotion
from pipeline.registry.promotion import promote as move_alias
from pipeline.registry.versions import CHAMPION


@flow(name="promote", description="Make a model version the champion, if it fits the settings.")
@user_errors_as_state
def promote(version: int, alias: str = CHAMPION, settings_file: Path | None = None) -> Promotion:
    """The alias with its new and its previous version."""
    done = move_alias(load_run_settings(settings_file), version, alias)
    get_run_logger().info("%s is version %d; previous version: %s", done.alias, done.version, done.previous or "none")
    return done
