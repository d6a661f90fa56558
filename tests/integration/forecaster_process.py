"""A forecaster in a process of its own, for tests that kill it: ``python -m … '{"settings": …}'``."""

import json
import logging
import os
import signal
import sys
from pathlib import Path

from pipeline.errors import StreamgruError
from pipeline.forecaster import Options, StreamForecaster
from pipeline.instance import Instance
from pipeline.settings import Settings
from tests.integration.stream_rig import FolderChampion


def main() -> None:
    arguments = json.loads(sys.argv[1])
    settings = Settings(**arguments["settings"])
    left = arguments["times"]

    def reached(point: str) -> None:
        nonlocal left
        if point == arguments["die_at"]:
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    source = FolderChampion(Path(arguments["folder"]), settings)
    forecaster = StreamForecaster(
        settings, source, Instance(arguments["name"], exclusive=False), Options(reached=reached)
    )
    signal.signal(signal.SIGTERM, lambda signum, frame: forecaster.stop())
    try:
        forecaster.run()
    except StreamgruError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
