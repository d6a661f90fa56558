"""Schedules on a real Prefect: scheduled runs, a clean stop, and the deployments for work pools."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from kafka.admin import NewTopic
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterNextScheduledStartTime,
)
from prefect.client.schemas.objects import ConcurrencyOptions, StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Failed, Pending
from prefect.workers.process import ProcessWorker
from prometheus_client.parser import text_string_to_metric_families

from deploy.commands.alerts import AUTOMATIONS, alerts
from deploy.context import Context
from deploy.processes import DetachedProcess
from deploy.stack import Stack
from flows.alerts import read_automations
from flows.schedules import INTERVALS_FROM, ONE_AT_A_TIME, resume_deployment, scheduled_deployments
from pipeline.errors import SettingsError
from pipeline.kafka.clients import make_admin
from pipeline.settings import Settings
from pipeline.settings.sections import Schedule
from tests.conftest import SettingsFactory
from tests.environment import environment
from tests.ports import free_port
from tests.stacks import end_stack
from tests.waiting import wait_until

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
STREAMGRU = Path(sys.executable).with_name("streamgru")
PREFECT = Path(sys.executable).with_name("prefect")


@pytest.fixture
def prefect(prefect_server: Settings) -> Iterator[SyncPrefectClient]:
    with (
        temporary_settings({PREFECT_API_URL: prefect_server.prefect_api_url}),
        get_client(sync_client=True) as client,
    ):
        yield client


@pytest.fixture
def settings(broker: Settings, mlflow_server: Settings, fresh_settings: SettingsFactory) -> Settings:
    schedules = {"ingest": {"interval_s": 10}, "health_port": free_port()}
    chosen = fresh_settings(schedules=schedules, logging={"format": "json"})
    admin = make_admin(chosen)
    admin.create_topics([NewTopic(chosen.kafka.topics.readings, chosen.kafka.partitions, 1)])
    admin.close()
    return chosen


@pytest.fixture
def serving(settings: Settings, prefect: SyncPrefectClient, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`streamgru schedule` outside the project's folder, after a user has paused the monitor."""
    for deployment in scheduled_deployments(settings):
        if deployment.flow_name == "monitor":
            prefect.pause_deployment(deployment.apply())
    log = (tmp_path / "schedule.log").open("w")
    with (
        log,
        subprocess.Popen(
            [STREAMGRU, "schedule"],
            cwd=tmp_path,
            env=environment(settings),
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        yield process
        process.kill()


def ask(settings: Settings, path: str) -> tuple[int, bytes]:
    with urllib.request.urlopen(f"http://127.0.0.1:{settings.schedules.health_port}{path}", timeout=5) as answer:
        return answer.status, answer.read()


def scrape(settings: Settings, at_least: int) -> dict[tuple[str, ...], float] | None:
    """(name, values of the labels) -> value, once `at_least` ingests have succeeded."""
    families = text_string_to_metric_families(ask(settings, "/metrics")[1].decode())
    found = {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}
    return found if found["streamgru_flow_runs_total", "ingest", "completed"] >= at_least else None


@pytest.mark.long(30)
def test_a_schedule_starts_runs_and_its_deployments_survive_a_clean_stop(
    settings: Settings, prefect: SyncPrefectClient, serving: subprocess.Popen[str], tmp_path: Path
) -> None:
    name = settings.model_name

    def runs(flow: str, *states: str) -> list[Any]:
        found = prefect.request(
            "POST",
            "/flow_runs/filter",
            json={
                "deployments": {"name": {"any_": [name]}},
                "flows": {"name": {"any_": [flow]}},
                "flow_runs": {"state": {"type": {"any_": list(states)}}},
            },
        ).json()
        return [run for run in found if run["auto_scheduled"]]

    def read_log() -> str:
        assert serving.poll() is None, (tmp_path / "schedule.log").read_text()
        return (tmp_path / "schedule.log").read_text()

    wait_until(lambda: read_log() and len(runs("ingest", "COMPLETED")) >= 2, 240, "the schedule has run ingest twice")
    log = read_log()
    assert "ingest   every 10 s" in log
    assert "retrain  0 3 * * * (UTC)" in log
    assert "monitor is paused in Prefect" in log
    assert "Traceback" not in log

    page = wait_until(lambda: scrape(settings, at_least=2), 60, "the metrics count the runs")
    assert page["streamgru_scheduler_state", "serving"] == 1
    assert page["streamgru_flow_runs_total", "ingest", "failed"] == 0
    assert abs(page["streamgru_flow_last_success_timestamp_seconds", "ingest"] - time.time()) < 120
    assert ask(settings, "/healthz")[0] == ask(settings, "/readyz")[0] == 200
    assert json.loads(ask(settings, "/readyz")[1])["state"] == "serving"

    serving.send_signal(signal.SIGTERM)
    assert serving.wait(30) == 0
    lines = [json.loads(line) for line in (tmp_path / "schedule.log").read_text().splitlines()]
    assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, lines))
    assert "prefect.flow_runs" in {line["logger"] for line in lines}, "runs are processes of their own"
    for flow in ("ingest", "retrain", "monitor", "promote"):
        deployment = prefect.request("GET", f"/deployments/name/{flow}/{name}").json()
        assert deployment["paused"] is (flow == "monitor")
        assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
        assert deployment["global_concurrency_limit"]["limit"] == 1
    prefect.request("DELETE", f"/deployments/{deployment['id']}")


def test_a_start_keeps_schedules_and_pauses_and_only_the_newest_overdue_run(
    settings: Settings, prefect: SyncPrefectClient, request: pytest.FixtureRequest
) -> None:
    """Registration at Prefect alone would replace deployments and schedules, and keep all overdue runs."""
    never = settings.schedules.model_copy(update={"monitor": Schedule(interval_s=300_000_000)})
    chosen = settings.model_copy(update={"schedules": never})  # not due during this test

    def register() -> dict[str, Any]:
        found = {}
        for deployment in scheduled_deployments(chosen):
            resume_deployment(deployment, prefect)
            found[deployment.flow_name] = prefect.read_deployment(deployment.apply())
        return found

    before = register()
    interval = before["monitor"].schedules[0].schedule
    assert interval.anchor_date == INTERVALS_FROM
    assert not any(deployment.paused for deployment in before.values())
    prefect.pause_deployment(before["retrain"].id)
    prefect.update_deployment_schedule(before["ingest"].id, before["ingest"].schedules[0].id, active=False)
    request.addfinalizer(lambda: [prefect.delete_deployment(deployment.id) for deployment in before.values()])
    came_due = [datetime.now(UTC) - timedelta(minutes=minutes) for minutes in (50, 40, 30)]
    for moment, name in zip([came_due[0], *came_due], ["AwaitingRetry", "Late", "Scheduled", "Late"], strict=True):
        state = {"type": "SCHEDULED", "name": name, "state_details": {"scheduled_time": moment.isoformat()}}
        body = {"state": state, "tags": ["auto-scheduled"]}
        prefect.request("POST", f"/deployments/{before['monitor'].id}/create_flow_run", json=body)
    asked_for = prefect.create_flow_run_from_deployment(before["monitor"].id)

    after = register()
    assert after["monitor"].schedules[0].schedule == interval
    assert {name: deployment.paused for name, deployment in after.items()} == {
        "ingest": False,
        "retrain": True,
        "monitor": False,
        "promote": False,
    }
    assert [schedule.active for schedule in after["ingest"].schedules] == [False]
    assert [schedule.active for schedule in after["monitor"].schedules] == [True]
    due = prefect.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[before["monitor"].id]),
            next_scheduled_start_time=FlowRunFilterNextScheduledStartTime(before_=datetime.now(UTC)),
        )
    )
    assert asked_for.id in {run.id for run in due}
    others = {(run.state_name, run.next_scheduled_start_time) for run in due if run.id != asked_for.id}
    assert others == {("AwaitingRetry", came_due[0]), ("Late", came_due[-1])}


@pytest.fixture
def own_prefect(tmp_path: Path) -> Iterator[Settings]:
    """Settings of a Prefect server for one test, which kills it."""
    settings = Settings(home=tmp_path, stack={"prefect_port": free_port()})
    yield settings
    end_stack(settings)


@pytest.mark.long(17)
def test_the_slot_of_a_run_that_died_with_its_server_is_freed(own_prefect: Settings) -> None:
    """A lease occupies the slot; the next server frees it only if the lease is stored on disk."""
    stack = Stack(own_prefect)
    stack.up(("prefect",))
    leases = own_prefect.home / "prefect" / "concurrency_leases"
    with (
        temporary_settings({PREFECT_API_URL: own_prefect.prefect_api_url}),
        get_client(sync_client=True) as client,
    ):

        def begin() -> StateType:
            """Create a run of the deployment and request its slot; return the state of the run."""
            run = client.create_flow_run_from_deployment(deployment)
            state = client.set_flow_run_state(run.id, Pending()).state
            assert state is not None
            return state.type

        deployment = client.create_deployment(
            flow_id=client.create_flow_from_name("ingest"),
            name="one",
            concurrency_limit=ONE_AT_A_TIME.limit,
            concurrency_options=ConcurrencyOptions(collision_strategy=ONE_AT_A_TIME.collision_strategy),
        )
        assert [begin(), begin()] == [StateType.PENDING, StateType.CANCELLED]

        server = DetachedProcess("prefect", own_prefect.home)
        record = server.running()
        assert record is not None
        os.kill(record.pid, signal.SIGKILL)
        wait_until(lambda: server.running() is None, 30, "the server is dead")
        for file in leases.glob("*.json"):  # as if the lease had expired while the server was down
            file.write_text(re.sub(r'"20\d\d-', '"2020-', file.read_text()))

        stack.up(("prefect",))
        wait_until(lambda: begin() == StateType.PENDING, 60, "a new run gets the slot")


@pytest.fixture
def received() -> Iterator[tuple[str, Queue[str]]]:
    """The address of a webhook, and the bodies of the requests that it got."""
    bodies: Queue[str] = Queue()

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Webhook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", bodies
        server.shutdown()


@pytest.mark.long(20)
def test_an_alert_that_is_installed_twice_sends_one_message_for_an_overdue_flow(
    fresh_settings: SettingsFactory,
    prefect: SyncPrefectClient,
    received: tuple[str, "Queue[str]"],
    request: pytest.FixtureRequest,
) -> None:
    settings = fresh_settings()
    address, bodies = received
    runner, context = CliRunner(), Context(lambda: settings)
    names = [automation.name for automation in read_automations(AUTOMATIONS)]

    def delete() -> None:
        for name in names:
            for automation in prefect.read_automations_by_name(name):
                prefect.delete_automation(automation.id)

    request.addfinalizer(delete)

    def install(*arguments: str) -> Result:
        return runner.invoke(alerts, arguments, obj=context)

    first = install()
    assert first.exit_code == 0, first.output
    assert first.output.startswith(f"installed '{names[0]}'\ninstalled '{names[1]}'\nno message is sent yet")
    missing = install("--notify", "slack-webhook/nobody")
    assert isinstance(missing.exception, SettingsError)
    assert "Prefect has no block slack-webhook/nobody" in str(missing.exception)
    block = CustomWebhookNotificationBlock(name="x", url=address, json_data={"text": "{{subject}} | {{body}}"})
    block.save(settings.model_name, overwrite=True)
    (second,) = prefect.read_automations_by_name(names[1])
    prefect.pause_automation(second.id)
    assert "paused in Prefect" in install("--notify", f"custom-webhook/{settings.model_name}").output
    assert install().output == f"updated '{names[0]}'\nupdated '{names[1]}'; it is paused in Prefect\n"
    assert all(len(prefect.read_automations_by_name(name)) == 1 for name in names)

    monitor_id = prefect.create_flow_from_name("monitor")
    deployment = prefect.create_deployment(flow_id=monitor_id, name=settings.model_name)
    run = prefect.create_flow_run_from_deployment(deployment)
    prefect.set_flow_run_state(run.id, Failed(name="Overdue", message="no retraining has succeeded"), force=True)
    message = bodies.get(timeout=120)
    assert names[0] in message
    assert run.name in message
    assert "no retraining has succeeded" in message
    assert bodies.empty()


def test_a_file_without_automations_is_refused_with_the_form(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"automations": [{"name": "x"}]}')
    for file in (tmp_path / "mine.json", tmp_path / "missing.json"):
        with pytest.raises(SettingsError, match=rf"{file.name} holds no automations of Prefect.*automations.json"):
            read_automations(file)


def test_deployments_for_work_pools_are_created_without_a_prompt(
    prefect: SyncPrefectClient, prefect_server: Settings, tmp_path: Path
) -> None:
    variables = {
        **environment(prefect_server),
        "PREFECT_API_URL": prefect_server.prefect_api_url,
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
    }

    file = "deploy/prefect.yaml"
    wanted = yaml.safe_load((ROOT / file).read_text())["deployments"]
    template = ProcessWorker.get_default_base_job_template()
    for pool in {deployment["work_pool"]["name"] for deployment in wanted}:
        prefect.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))
    done = subprocess.run(
        [PREFECT, "--no-prompt", "deploy", "--prefect-file", file, "--all"],
        cwd=ROOT,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for deployment in wanted:
        flow = deployment["entrypoint"].partition(":")[2]
        found = prefect.request("GET", f"/deployments/name/{flow}/{deployment['name']}").json()
        assert found["work_pool_name"] == deployment["work_pool"]["name"]
        assert len(found["schedules"]) == len(deployment["schedules"])
        assert found["global_concurrency_limit"]["limit"] == 1
        assert not found["pull_steps"]
        prefect.request("DELETE", f"/deployments/{found['id']}")


def test_the_commands_run_the_flows_and_print_their_results(settings: Settings, prefect: SyncPrefectClient) -> None:
    def streamgru(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [STREAMGRU, *arguments],
            env=environment(settings) | {"STREAMGRU_LOGGING": '{"format": "text"}'} | variables,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    done = streamgru("ingest")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"nothing new on topic {settings.kafka.topics.readings}\n"
    latest = prefect.request("GET", "/artifacts/ingest/latest").json()
    assert latest["data"].startswith("## Nothing new on topic ")

    failed = streamgru("retrain")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.startswith("error: the history table")
    assert "Traceback" not in failed.stderr

    nobody = free_port()
    away = streamgru("ingest", STREAMGRU_PREFECT_API_URL=f"http://127.0.0.1:{nobody}/api")
    assert away.returncode == 1
    assert away.stderr.startswith(f"error: Prefect does not answer at http://127.0.0.1:{nobody}/api")
    assert "streamgru up" in away.stderr
