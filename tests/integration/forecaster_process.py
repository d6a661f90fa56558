"""A forecaster in a process of its own, for tests that kill it."""

import logging
import os
import signal
import sys
from pathlib import Path

from pipeline.errors import StreamgruError
from pipeline.forecaster.loop import Options, StreamForecaster
from pipeline.kafka.instance import Instance
from pipeline.settings import Settings
from tests.integration.stream_rig import FolderChampion


def run(settings: Settings, folder: Path, name: str, die_at: str | None, times: int, log: Path) -> None:
    """Forecast until SIGTERM; die by SIGKILL at the ``times``-th pass of the point ``die_at`` of the loop."""
    left = times

    def reached(point: str) -> None:
        nonlocal left
        if point == die_at:
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), sys.stderr.fileno())
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    instance = Instance(name, exclusive=False)
    forecaster = StreamForecaster(settings, FolderChampion(folder, settings), instance, Options(reached=reached))
    signal.signal(signal.SIGTERM, lambda signum, frame: forecaster.stop())
    try:
        forecaster.run()
    except StreamgruError as error:
        sys.exit(f"error: {error}")
