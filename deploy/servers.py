"""The MLflow and the Prefect server of the local stack."""

import http.client
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.service import HOST, Launch, Report
from pipeline.errors import StackError
from pipeline.settings import Settings

ANSWER_TIMEOUT_S = 3.0


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
        _make_folder(self.name, self.data)
        command = (
            *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(self.port)),
            *("--backend-store-uri", f"sqlite:///{self.data / 'mlflow.db'}"),
            *("--serve-artifacts", "--artifacts-destination", str(self.data / "artifacts")),
            # Each worker loads the whole server, 15 s of a core; one serves a machine's few users.
            *("--workers", "1"),
        )
        environment = {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # Its queue of evaluation jobs would be three more processes that nothing here uses.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "DO_NOT_TRACK": "true",
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
        _make_folder(self.name, self.data)
        command = (sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(self.port))
        environment = {
            "PREFECT_HOME": str(self.data),
            # Also where the pages look for the API.
            "PREFECT_API_URL": self.address(self.port),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "true",
        }
        return Launch(command, environment)

    def answers(self) -> bool:
        """Whether its health check says so."""
        return _is_ok(self.port, "/api/health")


def _make_folder(name: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StackError(
            f"{name}'s data folder {folder} cannot be written: {error.strerror}. Make it writable, or choose another "
            "folder with STREAMGRU_HOME."
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
