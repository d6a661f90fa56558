"""The monitor flow: fails if retraining or ingest is overdue, so that Prefect's automations can notify a user.

A run that hangs blocks its schedule for ever, and a schedule without a server starts no runs. Neither shows as a failed
run.
"""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.states import Failed

from flows.prefect_text import publish_page
from flows.run_settings import load_run_settings
from flows.user_errors import user_errors_as_state
from pipeline.best_effort import best_effort
from pipeline.history.table import History
from pipeline.registry.training_run import last_trained
from pipeline.settings import Settings
from pipeline.settings.sections import MonitorSettings
from pipeline.text.markdown_text import markdown_table

log = logging.getLogger("streamgru.flows")


@flow(name="monitor", description="Fail if retraining or ingest have not succeeded for too long.")
@user_errors_as_state
def monitor(settings_file: Path | None = None) -> list[str]:
    """A sentence for each overdue flow. If there is any, the run fails with the state Overdue."""
    settings, now = load_run_settings(settings_file), datetime.now(UTC)
    trained_at, appended_at = last_successes(settings, now)
    found = overdue(settings.monitor, now, trained_at, appended_at)
    for sentence in found:
        get_run_logger().warning("%s", sentence)
    with best_effort("the page monitor in Prefect", log):
        publish_page(monitor_page(settings.monitor, now, trained_at, appended_at), "monitor", "overdue flows")
    if found:
        return Failed(name="Overdue", message="; ".join(found))  # type: ignore[return-value]  # Prefect unwraps a state
    return found


def overdue_now(settings: Settings, now: datetime) -> list[str]:
    """As ``overdue``, by the registry and the history.

    Raises:
        StreamgruError: MLflow does not answer, or the history cannot be read.
    """
    return overdue(settings.monitor, now, *last_successes(settings, now))


def last_successes(settings: Settings, now: datetime) -> tuple[datetime | None, datetime | None]:
    """The times of the last successful retraining and of the last append to the history; None before the first.

    Raises:
        StreamgruError: MLflow does not answer, or the history cannot be read.
    """
    history = History(settings.history_path, settings.features)
    back_to_s = now.timestamp() - settings.monitor.append_within_s
    appended_at = history.appended_at(back_to_s) if history.exists() else None
    return last_trained(settings), appended_at


def overdue(
    limits: MonitorSettings, now: datetime, trained_at: datetime | None, appended_at: datetime | None
) -> list[str]:
    """A sentence each for retraining and ingest if the last success is older than its limit."""
    checks = (
        ("no retraining has succeeded", trained_at, limits.retrain_within_s, "`streamgru retrain` shows why"),
        ("no readings were added to the history", appended_at, limits.append_within_s, "`streamgru ingest` shows why"),
    )
    return [
        f"{what} {_since(now, last)}; {advice}"
        for what, last, within_s, advice in checks
        if last is None or now - last > timedelta(seconds=within_s)
    ]


def monitor_page(
    limits: MonitorSettings, now: datetime, trained_at: datetime | None, appended_at: datetime | None
) -> str:
    """The overdue flows with the next step, and the last success of each flow, as Markdown."""
    found = overdue(limits, now, trained_at, appended_at)
    heading = "Overdue" if found else "Retraining and ingest are on time"
    table = markdown_table(
        ["flow", "last success (UTC)", "hours ago", "overdue after hours"],
        [
            _row("retrain", now, trained_at, limits.retrain_within_s),
            _row("ingest, new readings", now, appended_at, limits.append_within_s),
        ],
    )
    return "\n\n".join([f"## {heading}", "\n".join(f"- {sentence}" for sentence in found), table])


def _row(flow: str, now: datetime, last: datetime | None, within_s: float) -> list[str]:
    when = f"{last:%Y-%m-%d %H:%M}" if last else "never"
    ago = f"{(now - last).total_seconds() / 3_600:,.1f}" if last else ""
    return [flow, when, ago, f"{within_s / 3_600:,.1f}"]


def _since(now: datetime, last: datetime | None) -> str:
    if last is None:
        return "so far"
    return f"for {(now - last).total_seconds() / 3_600:,.1f} hours (since {last:%Y-%m-%d %H:%M} UTC)"
