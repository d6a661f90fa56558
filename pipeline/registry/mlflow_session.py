"""The only module that makes MLflow clients: it sets their timeouts and converts MLflow's errors to ours.

MLflow takes seconds to import, so the first call imports it. Its timeouts are environment variables of the process.
They are set around each call and restored, so that other users of MLflow in this process keep their own.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from pipeline.errors import ModelMissing, RegistryError, RegistryUnreachable
from pipeline.loopback import without_proxy

# A forecaster looks up the champion every few seconds, and must fail fast if MLflow does not answer.
LOOKUP_TIMEOUT_S: Final = 4
# A retraining logs the result of minutes of work, and can wait for a busy server.
LOGGING_TIMEOUT_S: Final = 30
LOGGING_RETRIES: Final = 3

_ENVIRONMENT = threading.RLock()  # one call at a time may change the process's environment


@dataclass(frozen=True)
class MlflowSession:
    """Calls to the MLflow server at ``uri`` about the registered model ``model_name``."""

    uri: str
    model_name: str
    patient: bool = False  # every call waits longer and is retried

    @contextmanager
    def client(self, doing: str, version: int | None = None, *, patient: bool = False) -> Iterator[Any]:
        """A client for a few calls. ``doing`` is a phrase such as "tagging a run"; ``patient`` calls are retried.

        Raises:
            RegistryUnreachable: MLflow does not answer, or reports an internal error.
            ModelMissing: ``version`` does not exist.
            RegistryError: MLflow refuses a request.
        """
        limits = (LOGGING_TIMEOUT_S, LOGGING_RETRIES) if patient or self.patient else (LOOKUP_TIMEOUT_S, 0)
        with _ENVIRONMENT, _environment(self.uri, *limits):
            from mlflow import MlflowClient

            try:
                yield MlflowClient(self.uri, self.uri)
            except (mlflow_error(), _transfer_error()) as error:
                if is_unreachable(error):
                    raise RegistryUnreachable(
                        f"MLflow does not answer at {self.uri} ({doing}); start the local stack with `streamgru up`, "
                        "or set STREAMGRU_MLFLOW_TRACKING_URI to your server's address"
                    ) from error
                if version is not None and is_missing(error):
                    raise ModelMissing(
                        f"{self.model_name} has no version {version} in MLflow at {self.uri}; `streamgru models` lists "
                        "all versions"
                    ) from error
                raise RegistryError(f"MLflow at {self.uri} refused {doing}: {error}{_remedy(error)}") from error


def _remedy(error: BaseException) -> str:
    """The next step after an error about a run or an experiment that a user deleted in MLflow."""
    text = str(error).lower()
    if "deleted" not in text and "'active'" not in text:
        return ""
    return " Somebody deleted it in MLflow; restore it on MLflow's page or with its command line, or start again"


def mlflow_error() -> type[Any]:
    """The class of MLflow's errors, for an ``except`` clause."""
    from mlflow.exceptions import MlflowException

    kind: type[Any] = MlflowException
    return kind


def _transfer_error() -> type[Any]:
    """The class of errors that MLflow's client does not convert, for example after an upload to a full disk."""
    from requests.exceptions import RequestException

    kind: type[Any] = RequestException
    return kind


def is_missing(error: Any) -> bool:
    """Whether the error says that a model, version or alias does not exist; for an alias only its text does."""
    code = getattr(error, "error_code", None)
    return code == "RESOURCE_DOES_NOT_EXIST" or (
        code == "INVALID_PARAMETER_VALUE" and "alias" in str(error) and "not found" in str(error)
    )


def is_unreachable(error: BaseException) -> bool:
    """Whether the error or one of its causes is a connection error or an internal error of the server."""
    from mlflow.exceptions import RestException
    from requests.exceptions import ConnectionError as NoConnection
    from requests.exceptions import HTTPError, Timeout

    if isinstance(error, HTTPError) and error.response is not None:
        return error.response.status_code in (500, 502, 503, 504)
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, NoConnection | Timeout):
            return True
        if isinstance(seen, RestException):
            return bool(seen.get_http_status_code() >= 500)
        seen = seen.__cause__ or seen.__context__
    return str(error).startswith("API request to ")


@contextmanager
def _environment(uri: str, timeout_s: int, retries: int) -> Iterator[None]:
    """Set MLflow's environment variables for the block, and restore them."""
    wanted = {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_REGISTRY_URI": uri,  # for `models:/…`
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        **without_proxy(os.environ, uri),
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
