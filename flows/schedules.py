"""The flows with their schedules, as ``streamgru schedule`` serves them; deploy/prefect.yaml is for work pools."""

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
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterNextScheduledStartTime,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterTags,
)
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
from pipeline.settings_sections import Schedule

# A run that comes due while the one before it still works is dropped, not queued: the next one does its work too.
# The slot of a run that was killed is free again when its lease ends (300 s), if the server still knows that lease.
ONE_AT_A_TIME: Final = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
# Intervals are counted from here. Prefect would count them from when they are registered, as every start does: a daily
# run would never come where the scheduler is started anew once a day.
INTERVALS_FROM: Final = datetime(2020, 1, 1, tzinfo=UTC)
# How often Prefect is asked what has come due: the most that a run starts late.
QUERY_S: Final = 5.0
# Prefect's runner asks for some minutes, and then gives up; so long after that it is started anew.
RETRY_S: Final = 30.0
REFUSALS: Final = (401, 403, 422)  # what no waiting changes: no right to ask, or not what this server understands

logger = logging.getLogger("streamgru.schedules")


def scheduled_deployments(settings: Settings) -> list[RunnerDeployment]:
    """A deployment for each flow, named like the model, on its schedule; promotions wait to be asked for.

    Raises:
        SettingsError: what the settings give as a schedule is none.
    """
    schedules = settings.schedules
    return [
        _deployment(ingest, settings, schedules.ingest),
        _deployment(retrain, settings, schedules.retrain),
        _deployment(monitor, settings, schedules.monitor),
        _deployment(promote, settings, None),
    ]


def serve(settings: Settings) -> None:
    """Run what comes due, each run in a process of its own, until SIGTERM or Ctrl-C; those ended then are cancelled.

    The schedules stay active in Prefect, or paused where somebody paused them there. Of what came due of a flow while
    nobody served it, the last run is made up for.

    Where Prefect goes away for longer than the runs under way can wait, these end, and it is asked again until it is
    back. A run that ended so keeps the next ones of its flow away for up to five minutes, as one that was killed does.

    Raises:
        StackError: Prefect answers, and refuses what it is asked for.
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
            signal.signal(signal.SIGTERM, before)  # until the next runner takes it; the last one's loop is gone
            logger.warning(
                "Prefect at %s does not answer as it should (%s); nothing runs until it does, trying again every %g s",
                settings.prefect_api_url,
                cause,
                RETRY_S,
            )
            time.sleep(RETRY_S)
        else:
            return


def resume_deployment(deployment: RunnerDeployment, client: SyncPrefectClient) -> None:
    """Fit a deployment, before it is registered once more, to what has become of it in Prefect.

    What is paused there, as a whole or in its schedule, stays so. Runs that came due while nobody served it are deleted
    there but for the last one: they would be begun one after the other, for hours after a few days.
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
            "%s is paused in Prefect; it does not run by itself until it is resumed there", deployment.flow_name
        )
    dropped = _drop_overdue(known, client)
    if dropped:
        logger.warning(
            "%s came due %d times while nobody served it; the last time is made up for",
            deployment.flow_name,
            dropped + 1,
        )


def _drop_overdue(deployment: DeploymentResponse, client: SyncPrefectClient) -> int:
    """How many runs were deleted: those that schedules made and that are due, but for the newest."""

    def due(until: datetime) -> FlowRunFilter:
        return FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
            # By name: a run that somebody told to try once more is scheduled as well.
            state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Scheduled", "Late"])),
            tags=FlowRunFilterTags(all_=["auto-scheduled"]),
            next_scheduled_start_time=FlowRunFilterNextScheduledStartTime(before_=until),
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
            with suppress(ObjectNotFound):  # asked once more where the answer was lost, or somebody else was quicker
                client.delete_flow_run(run.id)
        dropped += len(overdue)
    return dropped


def is_outage(error: BaseException) -> bool:
    """Whether Prefect's runner ended with this because its server was away, or what answers in its place."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_outage, error.exceptions))
    request = failed_request(error)
    if isinstance(request, httpx.HTTPStatusError):
        return request.response.status_code not in REFUSALS
    # What the runner's loops raise, without a cause, when too many requests in a row failed.
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
        # By module, since the folder in which it is served need not be this project's.
        return RunnerDeployment.from_flow(
            flow,
            settings.model_name,
            concurrency_limit=ONE_AT_A_TIME,
            entrypoint_type=EntrypointType.MODULE_PATH,
            **when,
        )
    except (ValueError, OverflowError) as error:
        raise SettingsError(
            f"schedules.{flow.name}: {given} is no schedule; cron takes five fields (minute, hour, day of the month, "
            'month, day of the week), such as "0 3 * * *", and interval_s a number of seconds'
        ) from error
