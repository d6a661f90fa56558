"""The flows with their schedules, as ``streamgru schedule`` serves them; deploy/prefect.yaml is for work pools."""

import asyncio
from datetime import timedelta
from typing import Any, Final

from prefect import Flow
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.runner import Runner
from prefect.types.entrypoint import EntrypointType

from flows.ingest import ingest
from flows.monitor import monitor
from flows.promote import promote
from flows.retrain import retrain
from pipeline.settings import Schedule, Settings

# A run that comes due while the one before it still works is dropped, not queued: the next one does its work too.
# The slot of a run that was killed is free again when its lease ends (300 s), if the server still knows that lease.
ONE_AT_A_TIME: Final = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
# How often Prefect is asked what has come due: the most that a run starts late.
QUERY_S: Final = 5.0


def scheduled_deployments(settings: Settings) -> list[RunnerDeployment]:
    """A deployment for each flow, named like the model, on its schedule; promotions wait to be asked for."""
    schedules = settings.schedules
    return [
        _deployment(ingest, settings, schedules.ingest),
        _deployment(retrain, settings, schedules.retrain),
        _deployment(monitor, settings, schedules.monitor),
        _deployment(promote, settings, None),
    ]


def serve(settings: Settings) -> None:
    """Run what comes due, each run in a process of its own, until SIGTERM or Ctrl-C; those ended then are cancelled.

    The schedules stay active in Prefect.
    """
    runner = _Server(pause_on_shutdown=False, query_seconds=QUERY_S)
    for deployment in scheduled_deployments(settings):
        runner.add_deployment(deployment)
    asyncio.run(runner.start())


class _Server(Runner):
    def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
        """Stop in the runner's own loop. Prefect's handler exits at once and leaves the children running."""
        self.execute_in_background(self.astop)


def _deployment(flow: Flow[..., Any], settings: Settings, schedule: Schedule | None) -> RunnerDeployment:
    when: dict[str, Any] = {}
    if schedule is not None:
        if schedule.cron is not None:
            when["cron"] = schedule.cron
        elif schedule.interval_s is not None:
            when["interval"] = timedelta(seconds=schedule.interval_s)
    # By module, since the folder in which it is served need not be this project's.
    return RunnerDeployment.from_flow(
        flow,
        settings.model_name,
        concurrency_limit=ONE_AT_A_TIME,
        entrypoint_type=EntrypointType.MODULE_PATH,
        **when,
    )
