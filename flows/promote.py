"""The promote flow: a promotion or a rollback, from Prefect's pages or an automation."""

from pathlib import Path

from prefect import flow, get_run_logger
from prefect.context import FlowRunContext

from flows.prefect_text import publish_link, publish_page
from flows.run_settings import load_run_settings
from flows.user_errors import user_errors_as_state
from pipeline.registry.promotion import Promotion
from pipeline.registry.promotion import promote as move_alias
from pipeline.registry.promotion_log import Mover, this_user
from pipeline.registry.versions import CHAMPION, version_url
from pipeline.settings import Settings
from pipeline.text.markdown_text import markdown


@flow(name="promote", description="Make a model version the champion, if it fits the settings.")
@user_errors_as_state
def promote(version: int, alias: str = CHAMPION, settings_file: Path | None = None, reason: str = "") -> Promotion:
    """The alias with its new and its previous version; ``reason`` is kept on the version."""
    settings = load_run_settings(settings_file)
    run = FlowRunContext.get()
    who = f"the run {run.flow_run.name} in Prefect" if run and run.flow_run else this_user()
    done = move_alias(settings, version, alias, Mover(who, reason))
    get_run_logger().info("%s is version %d; previous version: %s", done.alias, done.version, done.previous or "none")
    _publish(settings, done, reason)
    return done


def _publish(settings: Settings, done: Promotion, reason: str) -> None:
    """Publish the new and the previous version on the run's page in Prefect."""
    name, url = settings.model_name, version_url(settings, done.version)
    previous = "none" if done.previous is None else f"version {done.previous}"
    lines = [
        f"## Version {done.version} of {markdown(name)} is {markdown(done.alias)}",
        "It had the alias already." if not done.changed else f"Previously: {previous}.",
        *([f"Reason: {markdown(reason)}"] if reason else []),
    ]
    if done.undo is not None:
        lines.append(f"To go back, run `{done.undo}`.")
    publish_page("\n\n".join(lines), "promotion", "the alias and its versions")
    publish_link(url, f"Version {done.version} of {name} in MLflow", "mlflow-version", "the model card and the scores")
