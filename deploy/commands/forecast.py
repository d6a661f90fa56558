"""``streamgru forecast``: one forecaster on the stream of readings."""

import logging
import os
import signal
from pathlib import Path
from types import FrameType

import click

from deploy.context import Context
from deploy.option_types import FiniteRange


@click.command()
@click.option(
    "--instance",
    metavar="NAME",
    help="Stable name of this forecaster, unique in its group; by default the host and a free slot.",
)
@click.option(
    "--accept-loss",
    is_flag=True,
    help="Where readings were deleted before they were forecast, go on from the start of the log.",
)
@click.option(
    "--max-idle",
    type=FiniteRange(min=1.0),
    metavar="SECONDS",
    help="End with an error when there are readings and no transaction for so long; being idle does not count.",
)
@click.option(
    "--health-port",
    type=click.IntRange(1, 65_535),
    metavar="PORT",
    help="Answer GET /healthz and /readyz there; by default forecaster.health_port of the settings, or not at all.",
)
@click.option(
    "--stats",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep the counts in this file, as JSON.",
)
@click.pass_obj
def forecast(
    context: Context,
    instance: str | None,
    accept_loss: bool,
    max_idle: float | None,
    health_port: int | None,
    stats: Path | None,
) -> None:
    """Forecast every reading as it arrives, until Ctrl-C or SIGTERM.

    Start as many as you like: they share the partitions. Each follows the champion alias by itself and goes on where
    the last transaction ended, whatever happened to it.
    """
    from pipeline.forecaster.champion import RegistryChampion
    from pipeline.forecaster.instance import claim_instance
    from pipeline.forecaster.loop import Options, StreamForecaster

    settings = context.settings
    claimed = claim_instance(settings, instance)
    forecaster = StreamForecaster(
        settings,
        RegistryChampion(settings),
        claimed,
        Options(accept_loss=accept_loss, max_idle_s=max_idle, stats=stats, health_port=health_port),
    )

    def stop(signum: int, frame: FrameType | None) -> None:
        forecaster.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        forecaster.run()
    finally:
        claimed.release()
    # All that is left is to take torch and MLflow apart, which takes seconds on a busy machine.
    logging.shutdown()
    os._exit(0)
