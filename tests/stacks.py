"""Stopping the stacks of tests."""

import os
import signal
from contextlib import suppress

from deploy.processes import DetachedProcess
from deploy.stack import SERVICES, Stack
from pipeline.settings import Settings


def end_stack(settings: Settings) -> None:
    """Kill the servers of a stack whose data is not needed; a clean stop takes seconds per server."""
    for service in SERVICES:
        record = DetachedProcess(service, settings.home.resolve()).running()
        if record is not None:
            with suppress(ProcessLookupError):
                os.killpg(record.pid, signal.SIGKILL)
    Stack(settings).down()
