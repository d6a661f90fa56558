"""A forecaster of the chaos harness, in a process forked from one that has imported all modules."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pipeline.forecaster.session
from pipeline.errors import StreamgruError
from pipeline.forecaster.champion import Candidate
from pipeline.forecaster.loop import Options, StreamForecaster
from pipeline.forecaster.positions import Position
from pipeline.forecaster.transaction import KafkaTransport
from pipeline.kafka.instance import Instance
from pipeline.settings import Settings
from tests.chaos.gauge import KILL, Gauge
from tests.chaos.guards import GUARDS
from tests.integration.stream_rig import FolderChampion

GAVE_UP: Final = 3  # exit code after a StreamgruError, which a forecaster may end with
BROKE: Final = 4  # exit code after any other exception, which is a bug


@dataclass(frozen=True)
class Orders:
    """The arguments of a forecaster's process."""

    settings: Settings
    name: str
    models: Path
    folder: Path  # folder of the gauge, the log and the record of the last served version
    without: tuple[str, ...] = ()  # guards removed on purpose


class Champion(FolderChampion):
    """The harness's folder of models; each forecaster records the version it served last in a file of its own."""

    def __init__(self, orders: Orders) -> None:
        super().__init__(orders.models, orders.settings)
        self._note = orders.folder / "served"

    def last_served(self) -> Candidate | None:
        if not self._note.exists():
            return None
        version = int(self._note.read_text())
        return Candidate(version, self.load(version))

    def save_last_served(self, version: int) -> None:
        partial = self._note.with_suffix(".partial")
        partial.write_text(str(version))
        partial.replace(self._note)

    def clear_last_served(self) -> None:
        self._note.unlink(missing_ok=True)


def run(orders: Orders) -> None:
    """Forecast until SIGTERM; exit with 0, ``GAVE_UP`` or ``BROKE``."""
    log = os.open(orders.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(process)d %(name)s: %(message)s", force=True
    )
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    logging.getLogger("streamgru.partitions").setLevel(logging.DEBUG)  # logs every transition, for ``transitions.walk``
    for guard in orders.without:
        GUARDS[guard]()
    gauge = Gauge(orders.folder / "gauge", orders.settings.kafka.partitions)
    gauge.in_transaction = False
    _watch_transactions(gauge)

    def reached(point: str) -> None:
        action = gauge.passed(point)
        if action:
            os.kill(os.getpid(), signal.SIGKILL if action == KILL else signal.SIGSTOP)

    forecaster = StreamForecaster(
        orders.settings, Champion(orders), Instance(orders.name, exclusive=False), Options(reached=reached)
    )
    signal.signal(signal.SIGTERM, lambda signum, frame: forecaster.stop())
    try:
        forecaster.run()
    except StreamgruError as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(GAVE_UP)
    except BaseException:  # noqa: BLE001 - the traceback is logged, and BROKE fails the run
        traceback.print_exc()
        os._exit(BROKE)
    os._exit(0)


def _watch_transactions(gauge: Gauge) -> None:
    """Record in the gauge when a transaction is open, and which partitions it committed."""

    class Watched(KafkaTransport):
        def begin(self) -> None:
            gauge.in_transaction = True
            super().begin()

        def send_offsets(self, offsets: Mapping[int, Position], group_metadata: Any) -> None:
            super().send_offsets(offsets, group_metadata)
            self._partitions = list(offsets)

        def commit(self) -> None:
            super().commit()
            gauge.in_transaction = False
            for partition in self._partitions:
                gauge.note_commit(partition)

        def abort(self) -> None:
            super().abort()
            gauge.in_transaction = False

    pipeline.forecaster.session.KafkaTransport = Watched  # type: ignore[attr-defined]
