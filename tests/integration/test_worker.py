"""A Prefect worker runs flows in a temporary folder, so a run with a relative home fails and says why."""

import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessWorker

from pipeline.settings import Settings
from tests.environment import environment

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PREFECT = Path(sys.executable).with_name("prefect")


@pytest.mark.long(16)
def test_a_run_of_a_worker_with_a_relative_home_fails_and_names_it(prefect_server: Settings, tmp_path: Path) -> None:
    name = f"pool-{uuid.uuid4().hex[:8]}"
    variables = {
        **environment(prefect_server),
        "STREAMGRU_HOME": "relative",
        "PREFECT_API_URL": prefect_server.prefect_api_url,
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
    }

    def prefect_command(*arguments: str) -> None:
        done = subprocess.run(
            [PREFECT, "--no-prompt", *arguments],
            cwd=ROOT,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    file = tmp_path / "prefect.yaml"
    file.write_text(
        f"pull: []\ndeployments: [{{name: {name}, entrypoint: 'flows.ingest:ingest', work_pool: {{name: {name}}}}}]\n"
    )
    with (
        temporary_settings({PREFECT_API_URL: prefect_server.prefect_api_url}),
        get_client(sync_client=True) as client,
    ):
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
        prefect_command("deploy", "--prefect-file", str(file), "--all")
        deployment = client.request("GET", f"/deployments/name/ingest/{name}").json()
        run = client.request("POST", f"/deployments/{deployment['id']}/create_flow_run", json={}).json()
        prefect_command("worker", "start", "--pool", name, "--run-once")
        state = client.request("GET", f"/flow_runs/{run['id']}").json()["state"]
    assert state["type"] == "FAILED", state
    assert "home (STREAMGRU_HOME) is relative, a relative path: workers of pool" in state["message"]
