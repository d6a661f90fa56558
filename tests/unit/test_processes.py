"""Detached processes are found by their record, and stopped with all their workers."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deploy.processes import DetachedProcess
from pipeline.errors import StackError
from tests.waiting import wait_until

SLEEP = "import time; time.sleep(600)"
# Starts a worker, and prints its process id to the log.
PARENT = (
    f"import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, flush=True); {SLEEP}"
)
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); {SLEEP}"


@pytest.fixture
def process(tmp_path: Path) -> Iterator[DetachedProcess]:
    process = DetachedProcess("sleeper", tmp_path)
    yield process
    if process.record_path.exists():
        process.stop()


def start(process: DetachedProcess, code: str) -> int:
    process.start([sys.executable, "-c", code], dict(os.environ), port=1)
    record = process.running()
    assert record is not None
    return record.pid


def first_output(process: DetachedProcess) -> str:
    return wait_until(lambda: process.log_path.read_text().strip(), 10, "the process printed to its log")


def test_another_instance_finds_the_running_process_and_stops_it(process: DetachedProcess, tmp_path: Path) -> None:
    pid = start(process, SLEEP)
    other = DetachedProcess("sleeper", tmp_path)
    record = other.running()
    assert record is not None
    assert record.pid == pid
    assert other.stop()
    assert process.running() is None
    assert not psutil.pid_exists(pid)


def test_stopping_a_process_that_was_never_started_does_nothing(process: DetachedProcess) -> None:
    assert not process.stop()


def test_stopping_a_process_ends_its_workers(process: DetachedProcess) -> None:
    start(process, PARENT)
    worker = int(first_output(process))
    process.stop()
    assert not psutil.pid_exists(worker)


def test_workers_that_survive_their_parent_are_ended(process: DetachedProcess) -> None:
    parent = start(process, PARENT)
    worker = int(first_output(process))
    os.kill(parent, signal.SIGKILL)
    wait_until(lambda: process.running() is None, 10, "the parent has ended")
    assert psutil.pid_exists(worker)
    process.stop()
    assert not psutil.pid_exists(worker)


def test_a_process_that_ignores_sigterm_is_killed(process: DetachedProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.processes.TERMINATE_TIMEOUT_S", 0.2)
    pid = start(process, DEAF)
    first_output(process)
    process.stop()
    assert not psutil.pid_exists(pid)


def test_another_process_with_a_reused_id_is_neither_reported_nor_stopped(process: DetachedProcess) -> None:
    start(process, SLEEP)
    process.stop()
    with subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True) as other:
        # The record of a process that ended long ago, whose id the system has given to another process.
        process.record_path.write_text(json.dumps({"pid": other.pid, "started": 1.0, "port": 1}))
        assert process.running() is None
        assert not process.stop()
        assert other.poll() is None
        other.kill()


def test_a_damaged_record_is_named(process: DetachedProcess) -> None:
    process.record_path.parent.mkdir(parents=True)
    process.record_path.write_text("{")
    with pytest.raises(StackError, match=str(process.record_path)):
        process.running()
    process.record_path.unlink()


def test_exit_code_and_last_lines_of_an_ended_process_are_available(process: DetachedProcess) -> None:
    process.start([sys.executable, "-c", "raise SystemExit('no such port')"], dict(os.environ), port=1)
    wait_until(lambda: process.running() is None, 10, "the process has ended")
    assert process.exit_code() == 1
    assert process.last_lines() == "    no such port"


def test_a_program_that_does_not_exist_is_named(process: DetachedProcess) -> None:
    with pytest.raises(StackError, match="/nowhere/java: No such file"):
        process.start(["/nowhere/java"], {}, port=1)
