"""``streamgru forecast``: one forecaster on the stream of readings."""

import logging
import os
import signal
from pathlib import Path

import click

from deploy.context import Context
from deploy.loading import loading
from deploy.option_types import FiniteRange, health_port_option


@click.command()
@click.option(
    "--instance",
    metavar="NAME",
    help="Stable name of this forecaster, unique in its group; by default the host and a free slot.",
)
@click.option(
    "--accept-loss",
    is_flag=True,
    help="If readings were deleted before they were forecast, continue at the first reading left.",
)
@click.option(
    "--max-idle",
    type=FiniteRange(min=1.0),
    metavar="SECONDS",
    help="End with an error if readings wait and no transaction commits for SECONDS. An idle forecaster keeps running.",
)
@health_port_option("forecaster.health_port")
@click.option(
    "--stats",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the counts to this file, as JSON.",
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

    Forecasters share the partitions, so start up to as many as there are partitions. Each loads the model with the
    alias `champion`, and a new champion within seconds. After a crash a forecaster continues at the last committed
    transaction.
    """
    with loading():
        from pipeline.forecaster.champion import RegistryChampion
        from pipeline.forecaster.loop import Options, StreamForecaster
        from pipeline.kafka.instance import claim_instance

    settings = context.settings
    claimed = claim_instance(settings, instance)
    forecaster = StreamForecaster(
        settings,
        RegistryChampion(settings),
        claimed,
        Options(accept_loss=accept_loss, max_idle_s=max_idle, stats=stats, health_port=health_port),
    )

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: forecaster.stop())
    try:
        forecaster.run()
    finally:
        claimed.release()
    # The interpreter's own end would unload torch and MLflow, which takes seconds on a busy machine.
    logging.shutdown()
    os._exit(0)
