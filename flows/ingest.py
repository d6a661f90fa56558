"""The ingest flow: appends each new reading to the history table once."""

import logging
from pathlib import Path

from prefect import flow, get_run_logger

from flows.ingest_report import ingest_page
from flows.prefect_text import publish_page
from flows.progress import Progress, report_progress
from flows.run_settings import load_run_settings
from flows.user_errors import user_errors_as_state
from pipeline.best_effort import best_effort
from pipeline.history.ingest import IngestReport
from pipeline.history.ingest import ingest as append_new_readings
from pipeline.history.table import History

logger = logging.getLogger("streamgru.flows")


@flow(name="ingest", description="Append each new reading from Kafka to the history table once.")
@user_errors_as_state
def ingest(settings_file: Path | None = None, accept_loss: bool = False) -> IngestReport:
    """The report of an ingest.

    Args:
        settings_file: TOML file with the settings; by default the one that STREAMGRU_SETTINGS names.
        accept_loss: start at the topic's first offset if retention deleted the next offset of the history.
    """
    log = get_run_logger()
    settings = load_run_settings(settings_file)

    def report(so_far: IngestReport) -> None:
        readings = f"{so_far.readings:,} readings"
        report_progress(Progress(f"ingesting {so_far.topic}", so_far.done_offsets, so_far.total_offsets, readings))

    done = append_new_readings(settings, accept_loss=accept_loss, report=report)
    is_incomplete = done.rejected or done.lost_offsets or done.late or done.implausible
    log.log(logging.WARNING if is_incomplete else logging.INFO, "%s", done)
    with best_effort("the page ingest in Prefect", logger):
        version = History(settings.history_path, settings.features).version
        publish_page(ingest_page(done, version), "ingest", f"{done.readings:,} new readings")
    return done
