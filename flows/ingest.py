"""The ingest flow: new readings go into the history table, each once."""

from pathlib import Path

from prefect import flow, get_run_logger

from flows.progress import Progress, report_progress
from flows.run_settings import load_run_settings
from flows.user_errors import user_errors_as_state
from pipeline.history.ingest import IngestReport
from pipeline.history.ingest import ingest as take_in


@flow(name="ingest", description="Take new readings from Kafka into the history table, each once.")
@user_errors_as_state
def ingest(settings_file: Path | None = None, accept_loss: bool = False) -> IngestReport:
    """What a run took in.

    Args:
        settings_file: TOML file with the settings; by default the one that STREAMGRU_SETTINGS names.
        accept_loss: go on from the topic's start where its retention was quicker than the ingests.
    """
    log = get_run_logger()
    settings = load_run_settings(settings_file)

    def report(so_far: IngestReport) -> None:
        readings = f"{so_far.readings:,} readings"
        report_progress(Progress(f"ingesting {so_far.topic}", so_far.done_offsets, so_far.total_offsets, readings))

    done = take_in(settings, accept_loss=accept_loss, report=report)
    if done.rejected or done.lost_offsets:
        log.warning("%s", done)
    else:
        log.info("%s", done)
    return done
