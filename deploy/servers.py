"""The MLflow and the Prefect server of the local stack."""

import http.client
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from deploy.prefect_database import copy_empty_database
from deploy.service import COMMON_ENVIRONMENT, HOST, Launch, Report, Service, folder_error
from pipeline.errors import StackError

ANSWER_TIMEOUT_S = 3.0


class MLflowServer(Service):
    """MLflow's tracking server and model registry, on SQLite; it serves the artefacts itself."""

    name = "mlflow"

    def address(self, port: int) -> str:
        """A value for ``mlflow_tracking_uri``."""
        return f"http://{HOST}:{port}"

    def prepare(self, report: Report) -> Launch:
        """Make the data folder; the server creates its database itself."""
        database = self.data / "mlflow.db"
        _check_data(self.name, database)
        command = (
            *(sys.executable, "-m", "deploy.mlflow_process", "server", "--host", HOST, "--port", str(self.port)),
            *("--backend-store-uri", f"sqlite:///{database}"),
            *("--serve-artifacts", "--artifacts-destination", str(self.data / "artifacts")),
            # Each worker loads the whole server, which takes 15 s of a core; one is enough for a machine's users.
            *("--workers", "1"),
            # Forecasters poll the alias: a line for each request would be gigabytes a year.
            *("--uvicorn-opts", "--no-access-log"),
        )
        environment = COMMON_ENVIRONMENT | {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # Its queue of evaluation jobs takes three more processes, and nothing here uses it.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        return Launch(command, environment)

    def answers(self) -> bool:
        """Whether MLflow's health page answers."""
        return _is_ok(self.port, "/health")


class PrefectServer(Service):
    """Prefect's server with its scheduler, on SQLite."""

    name = "prefect"

    def address(self, port: int) -> str:
        """A value for ``prefect_api_url``."""
        return f"http://{HOST}:{port}/api"

    def prepare(self, report: Report) -> Launch:
        """Make the data folder with an empty database; without one the server creates its tables itself."""
        database = self.data / "prefect.db"
        _check_data(self.name, database)
        copy_empty_database(
            self.settings.stack.cache_path, database, lambda: report(self.name, "preparing its database (once)")
        )
        command = (
            sys.executable,
            "-m",
            "deploy.prefect_process",
            "server",
            "start",
            "--host",
            HOST,
            "--port",
            str(self.port),
        )
        environment = COMMON_ENVIRONMENT | {
            "PREFECT_HOME": str(self.data),
            # Prefect's pages look for the API at this address, too.
            "PREFECT_API_URL": self.address(self.port),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # Delete runs after 90 days, which by default stay: an ingest every five minutes is 100,000 runs a year.
            "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
            # By default a run's lease on its slot is in memory and dies with the server, but the slot stays taken in
            # the database: no later run of that flow would ever start.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        }
        return Launch(command, environment)

    def answers(self) -> bool:
        """Whether Prefect's health check answers."""
        return _is_ok(self.port, "/api/health")


def _check_data(name: str, database: Path) -> None:
    """Make the data folder and open the database, if any: the server itself would end with pages of stack traces."""
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        # A folder that exists may still be read-only, and the database needs a journal in the same folder.
        tempfile.TemporaryFile(dir=database.parent).close()
    except OSError as error:
        raise folder_error(name, database.parent, error) from error
    if not database.exists():
        return
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.DatabaseError as error:
        raise StackError(
            f"{name}'s database {database} cannot be read: {error}. Replace it by a backup, or move it away to start "
            "with an empty one."
        ) from error


def _is_ok(port: int, path: str) -> bool:
    # Not urllib or requests: these would ask a proxy that the environment names for a port of this machine.
    connection = http.client.HTTPConnection(HOST, port, timeout=ANSWER_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
