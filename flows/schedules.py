"""The flows with their schedules for ``streamgru schedule``; for work pools see deploy/prefect.yaml."""

import asyncio
import logging
import signal
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.runner import Runner
from prefect.schedules import Interval
from prefect.types.entrypoint import EntrypointType

from flows.ingest import ingest
from flows.monitor import monitor
from flows.orchestrator import failed_request
from flows.promote import promote
from flows.retrain import retrain
from pipeline.errors import SettingsError, StackError
from pipeline.settings import Settings
from pipeline.settings.sections import Schedule

# A run that is due while an earlier run is active is cancelled, not queued: the next run does its work too. The slot of
# a killed run is free again when its lease expires (300 s), if the server still has that lease.
ONE_AT_A_TIME: Final = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
# Intervals count from here. By default Prefect counts them from the registration, and every start registers again: with
# one restart of the scheduler a day, a daily run would never start.
INTERVALS_FROM: Final = datetime(2020, 1, 1, tzinfo=UTC)
# Seconds between queries for due runs; a run starts at most this late.
QUERY_S: Final = 5.0
# Seconds before the runner is restarted; it ends after some minutes without an answer from Prefect.
RETRY_S: Final = 30.0
REFUSALS: Final = (
    401,
    403,
    422,
)  # HTTP statuses that do not change by waiting

logger = logging.getLogger("streamgru.schedules")


def scheduled_deployments(settings: Settings) -> list[RunnerDeployment]:
    """A deployment with its schedule for each flow, with the name of the model; promote has no schedule.

    Raises:
        SettingsError: a schedule in the settings is invalid.
    """
    schedules = settings.schedules
    return [
        _deployment(ingest, settings, schedules.ingest),
        _deployment(retrain, settings, schedules.retrain),
        _deployment(monitor, settings, schedules.monitor),
        _deployment(promote, settings, None),
    ]


def serve(settings: Settings) -> None:
    """Start due runs, each in its own process, until SIGTERM or Ctrl-C, which cancel the active runs.

    The schedules stay active in Prefect, or paused if a user paused them. Of the overdue runs of a flow only the newest
    starts.

    If Prefect stops answering for longer than active runs can wait, they end, and this process retries until Prefect is
    back. Such a run blocks the next runs of its flow for up to five minutes, as a killed run does.

    Raises:
        StackError: Prefect refuses a request.
    """
    before = signal.getsignal(signal.SIGTERM)
    while True:
        runner = _Server(pause_on_shutdown=False, query_seconds=QUERY_S)
        try:
            deployments = scheduled_deployments(settings)
            with get_client(sync_client=True) as client:
                for deployment in deployments:
                    resume_deployment(deployment, client)
            for deployment in deployments:
                runner.add_deployment(deployment)
            asyncio.run(runner.start())
        except (httpx.HTTPError, RuntimeError, ExceptionGroup) as error:
            cause = _first_cause(error)
            if not is_outage(error):
                if failed_request(cause) is None:
                    raise
                raise StackError(
                    f"Prefect at {settings.prefect_api_url} refuses to serve schedules: {cause}"
                ) from error
            if runner.asked_to_stop:
                return
            signal.signal(signal.SIGTERM, before)  # the handler's event loop is closed; the next runner sets its own
            logger.warning(
                "Prefect at %s does not answer correctly (%s); no runs start until it does. Trying again every %g s",
                settings.prefect_api_url,
                cause,
                RETRY_S,
            )
            time.sleep(RETRY_S)
        else:
            return


def resume_deployment(deployment: RunnerDeployment, client: SyncPrefectClient) -> None:
    """Adjust a deployment to its state in Prefect before it is registered again.

    A paused deployment or schedule stays paused. Overdue runs are deleted except the newest, because Prefect would
    start them one after the other, for hours after a few days.
    """
    try:
        known = client.read_deployment_by_name(f"{deployment.flow_name}/{deployment.name}")
    except ObjectNotFound:
        return
    deployment.paused = known.paused
    is_active = not known.schedules or any(schedule.active for schedule in known.schedules)
    for schedule in deployment.schedules or []:
        schedule.active = is_active
    if known.paused or not is_active:
        logger.warning(
            "%s is paused in Prefect; it does not run on its schedule until you resume it there", deployment.flow_name
        )
    dropped = _drop_overdue(known, client)
    if dropped:
        logger.warning(
            "%s was due %d times while no scheduler ran; only the newest run starts",
            deployment.flow_name,
            dropped + 1,
        )


def _drop_overdue(deployment: DeploymentResponse, client: SyncPrefectClient) -> int:
    """Delete the overdue runs of schedules except the newest, and return their number."""

    def due(until: datetime) -> filters.FlowRunFilter:
        return filters.FlowRunFilter(
            deployment_id=filters.FlowRunFilterDeploymentId(any_=[deployment.id]),
            # By name, because a run that a user retries has the type "scheduled" too.
            state=filters.FlowRunFilterState(name=filters.FlowRunFilterStateName(any_=["Scheduled", "Late"])),
            tags=filters.FlowRunFilterTags(all_=["auto-scheduled"]),
            next_scheduled_start_time=filters.FlowRunFilterNextScheduledStartTime(before_=until),
        )

    newest = client.read_flow_runs(
        flow_run_filter=due(datetime.now(UTC)), sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1
    )
    if not newest or newest[0].next_scheduled_start_time is None:
        return 0
    older = due(newest[0].next_scheduled_start_time - timedelta(microseconds=1))
    dropped = 0
    while overdue := client.read_flow_runs(flow_run_filter=older):
        for run in overdue:
            with suppress(ObjectNotFound):  # a retry after a lost answer, or another process was faster
                client.delete_flow_run(run.id)
        dropped += len(overdue)
    return dropped


def is_outage(error: BaseException) -> bool:
    """Whether the error comes from an unreachable Prefect server, or from a proxy in front of it."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_outage, error.exceptions))
    request = failed_request(error)
    if isinstance(request, httpx.HTTPStatusError):
        return request.response.status_code not in REFUSALS
    # The runner's loops raise this error without a cause after too many failed requests in a row.
    return request is not None or "exceeded error threshold" in str(error)


def _first_cause(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Server(Runner):
    asked_to_stop = False

    def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
        """Stop in the runner's own loop. Prefect's handler exits at once and leaves the children running."""
        self.asked_to_stop = True
        self.execute_in_background(self.astop)


def _deployment(flow: Flow[..., Any], settings: Settings, schedule: Schedule | None) -> RunnerDeployment:
    given = {} if schedule is None else schedule.model_dump(exclude_none=True)
    when: dict[str, Any] = {}
    try:
        if "cron" in given:
            when["cron"] = given["cron"]
        elif "interval_s" in given:
            when["schedule"] = Interval(timedelta(seconds=given["interval_s"]), anchor_date=INTERVALS_FROM)
        # By module, because the scheduler's working folder may be another than this project's.
        return RunnerDeployment.from_flow(
            flow,
            settings.model_name,
            concurrency_limit=ONE_AT_A_TIME,
            entrypoint_type=EntrypointType.MODULE_PATH,
            **when,
        )
    except (ValueError, OverflowError) as error:
        raise SettingsError(
            f"schedules.{flow.name}: {given} is not a schedule; cron takes five fields (minute, hour, day of "
            'the month, month, day of the week), such as "0 3 * * *", and interval_s a number of seconds'
        ) from error
