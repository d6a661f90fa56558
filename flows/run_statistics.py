"""Statistics of the scheduled runs. A thread asks Prefect for them, because each run is a process of its own.

The thread writes ``RunStatistics`` and continues after an error. ``flows.schedule_health`` shows them.
"""

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort

from flows.orchestrator import is_request_failure
from pipeline.text.visible_text import visible

logger = logging.getLogger("streamgru.schedules")

FLOWS: Final = ("ingest", "retrain", "monitor", "promote")
ENDS: Final = tuple(
    state.value for state in (StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED)
)
CHECK_S: Final = 15.0  # seconds between two checks; each asks for the runs of each flow three times
# Prefect stores the end of a run a moment after it.
OVERLAP: Final = timedelta(minutes=2)
MOST_LETTERS: Final = 500  # of an error's message, which may contain whole answers


class ScheduleState(StrEnum):
    """The state of the scheduler, as /healthz names it."""

    STARTING = "starting"
    SERVING = "serving"
    WAITING = "waiting for Prefect"


@dataclass
class RunStatistics:
    """The statistics of one process. One thread writes them; attributes are replaced, never changed in place."""

    state: ScheduleState = ScheduleState.STARTING
    finished: Counter[tuple[str, str]] = field(default_factory=Counter)  # (flow, state) -> runs since the start
    running: dict[str, int] = field(default_factory=dict)  # flow -> runs in progress
    succeeded_at: dict[str, float] = field(default_factory=dict)  # flow -> end of the last success, s since 1970
    last_run_s: dict[str, float] = field(default_factory=dict)  # flow -> duration of the last success, seconds


class RunWatcher:
    """Asks Prefect for the runs of the deployments with the name of the model.

    Args:
        since: runs that ended before are not counted.
    """

    def __init__(self, model_name: str, since: datetime) -> None:
        self.statistics = RunStatistics()
        self._model_name = model_name
        self._since = since
        self._counted_until = since
        self._counted: dict[UUID, datetime] = {}  # id -> end of each counted run that a check may find again

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Check every ``CHECK_S`` seconds in a thread."""
        closed = threading.Event()
        # In a copy of this context, which has Prefect's settings.
        threading.Thread(
            target=copy_context().run, args=(self._run, closed), name="run-statistics", daemon=True
        ).start()
        try:
            yield
        finally:
            closed.set()

    def _run(self, closed: threading.Event) -> None:
        while not closed.is_set():
            try:
                with get_client(sync_client=True) as client:
                    while True:
                        self.check(client)
                        if closed.wait(CHECK_S):
                            return
            except Exception as error:
                logger.debug("cannot ask Prefect for the runs", exc_info=error)
                self._fail(error)
            closed.wait(CHECK_S)

    def _fail(self, error: Exception) -> None:
        is_first = self.statistics.state is not ScheduleState.WAITING  # of a series of failures
        self.statistics.state = ScheduleState.WAITING
        if is_first and not is_request_failure(error):  # Prefect's `serve` logs an outage itself
            logger.warning(
                "cannot read the scheduled runs from Prefect: %s: %s; /metrics keeps the statistics of the last check",
                type(error).__name__,
                visible(error, MOST_LETTERS),
            )

    def check(self, client: SyncPrefectClient) -> None:
        """Update the statistics."""
        statistics = self.statistics
        finished = statistics.finished.copy()
        running: dict[str, int] = {}
        succeeded_at: dict[str, float] = {}
        last_run_s: dict[str, float] = {}
        ended: dict[UUID, datetime] = {}
        for flow in FLOWS:
            for run in self._runs(client, flow, ended_after=self._counted_until - OVERLAP):
                if run.end_time is None or run.end_time < self._since or run.state_type is None:
                    continue
                ended[run.id] = run.end_time
                if run.id not in self._counted:
                    finished[flow, run.state_type.value] += 1
            running[flow] = len(self._runs(client, flow, state=StateType.RUNNING))
            for run in self._runs(client, flow, state=StateType.COMPLETED, limit=1):
                if run.end_time is not None:
                    succeeded_at[flow] = run.end_time.timestamp()
                    last_run_s[flow] = run.total_run_time.total_seconds()
        self._counted = ended
        self._counted_until = max([self._counted_until, *ended.values()])
        statistics.finished, statistics.running = finished, running
        statistics.succeeded_at, statistics.last_run_s = succeeded_at, last_run_s
        statistics.state = ScheduleState.SERVING

    def _runs(
        self,
        client: SyncPrefectClient,
        flow: str,
        *,
        state: StateType | None = None,
        ended_after: datetime | None = None,
        limit: int = 200,
    ) -> list[FlowRun]:
        wanted = filters.FlowRunFilter(
            state=None if state is None else filters.FlowRunFilterState(type=_one_of(state)),
            end_time=None if ended_after is None else filters.FlowRunFilterEndTime(after_=ended_after),
        )
        return client.read_flow_runs(
            flow_filter=filters.FlowFilter(name=filters.FlowFilterName(any_=[flow])),
            deployment_filter=filters.DeploymentFilter(name=filters.DeploymentFilterName(any_=[self._model_name])),
            flow_run_filter=wanted,
            sort=FlowRunSort.END_TIME_DESC,
            limit=limit,
        )


def _one_of(state: StateType) -> filters.FlowRunFilterStateType:
    return filters.FlowRunFilterStateType(any_=[state])
