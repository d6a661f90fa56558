"""The MLflow and the Prefect server of the local stack."""

import http.client
import sqlite3
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from deploy.service import HOST, Launch, Report, folder_error
from pipeline.errors import StackError
from pipeline.settings import Settings

ANSWER_TIMEOUT_S = 3.0
COMMON_ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    # `python -m` would look for modules in the current folder first, and a folder there may well be called `model`.
    "PYTHONSAFEPATH": "1",
}


@dataclass(frozen=True)
class MLflowServer:
    """MLflow's tracking server and model registry, on SQLite, serving the artefacts itself."""

    settings: Settings

    @property
    def name(self) -> str:
        """As the user reads it."""
        return "mlflow"

    @property
    def port(self) -> int:
        """Where its pages and its API are."""
        return self.settings.stack.mlflow_port

    @property
    def data(self) -> Path:
        """The folder that holds its database and the artefacts."""
        return self.settings.home.resolve() / "mlflow"

    def address(self, port: int) -> str:
        """A value for ``mlflow_tracking_uri``."""
        return f"http://{HOST}:{port}"

    def prepare(self, report: Report) -> Launch:
        """Make the data folder; the server makes its database itself."""
        database = self.data / "mlflow.db"
        _check_data(self.name, database)
        command = (
            *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(self.port)),
            *("--backend-store-uri", f"sqlite:///{database}"),
            *("--serve-artifacts", "--artifacts-destination", str(self.data / "artifacts")),
            # Each worker loads the whole server, 15 s of a core; one serves a machine's few users.
            *("--workers", "1"),
            # A line for each look at an alias would be gigabytes a year for every forecaster.
            *("--uvicorn-opts", "--no-access-log"),
        )
        environment = COMMON_ENVIRONMENT | {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # Its queue of evaluation jobs would be three more processes that nothing here uses.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        return Launch(command, environment)

    def answers(self) -> bool:
        """Whether its health page says so."""
        return _is_ok(self.port, "/health")


@dataclass(frozen=True)
class PrefectServer:
    """Prefect's server with its scheduler, on SQLite."""

    settings: Settings

    @property
    def name(self) -> str:
        """As the user reads it."""
        return "prefect"

    @property
    def port(self) -> int:
        """Where its pages and its API are."""
        return self.settings.stack.prefect_port

    @property
    def data(self) -> Path:
        """Its ``PREFECT_HOME``, which holds its database."""
        return self.settings.home.resolve() / "prefect"

    def address(self, port: int) -> str:
        """A value for ``prefect_api_url``."""
        return f"http://{HOST}:{port}/api"

    def prepare(self, report: Report) -> Launch:
        """Make the data folder; the server makes its database itself."""
        _check_data(self.name, self.data / "prefect.db")
        command = (sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(self.port))
        environment = COMMON_ENVIRONMENT | {
            "PREFECT_HOME": str(self.data),
            # Also where the pages look for the API.
            "PREFECT_API_URL": self.address(self.port),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # Runs are kept for 90 days, where they would be for ever: an ingest each five minutes is 100,000 a year.
            "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
            # In memory, as by default, the lease of a run's slot dies with the server, but the slot stays taken in the
            # database: no later run of that flow would ever start.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        }
        return Launch(command, environment)

    def answers(self) -> bool:
        """Whether its health check says so."""
        return _is_ok(self.port, "/api/health")


def _check_data(name: str, database: Path) -> None:
    """Make the data folder, and look into the database if there is one: the server would end in a page of traces."""
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        # As the server will: a folder that is there may still refuse the database's journal.
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
            f"{name}'s database {database} cannot be read: {error}. Put a sound copy in its place, or move it away to "
            "start with an empty one."
        ) from error


def _is_ok(port: int, path: str) -> bool:
    # Not through urllib or requests: a proxy from the environment knows nothing about this machine's own ports.
    connection = http.client.HTTPConnection(HOST, port, timeout=ANSWER_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
