"""The only module that makes MLflow clients: their time limits, and MLflow's errors turned into ours.

MLflow takes seconds to import, so it is imported by the first call. Its limits are environment variables of the
process; they are set around each call and put back, so that another user of MLflow in this process keeps theirs.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from pipeline.errors import ModelMissing, RegistryError, RegistryUnreachable

# A forecaster asks every few seconds who is champion; it must learn soon that nobody answers, and ask again.
LOOKUP_TIMEOUT_S: Final = 4
# A retraining has minutes of work to hand over, and can wait for a busy server.
LOGGING_TIMEOUT_S: Final = 30
LOGGING_RETRIES: Final = 3

_ENVIRONMENT = threading.RLock()  # the environment is the process's: one call at a time may change it


@dataclass(frozen=True)
class MlflowSession:
    """Conversations with the MLflow at ``uri`` about the registered model ``model_name``."""

    uri: str
    model_name: str
    patient: bool = False  # every conversation waits and tries again

    @contextmanager
    def client(self, what: str, version: int | None = None, *, patient: bool = False) -> Iterator[Any]:
        """A client for a few calls. ``what`` says what they are for; a ``patient`` conversation waits and tries again.

        Raises:
            RegistryUnreachable: MLflow does not answer, or fails inside.
            ModelMissing: there is no such ``version``.
            RegistryError: MLflow refuses.
        """
        patient = patient or self.patient
        limits = (LOGGING_TIMEOUT_S, LOGGING_RETRIES) if patient else (LOOKUP_TIMEOUT_S, 0)
        with _ENVIRONMENT, _environment(self.uri, *limits):
            from mlflow import MlflowClient

            try:
                yield MlflowClient(self.uri, self.uri)
            except (mlflow_error(), _transfer_error()) as error:
                if is_unreachable(error):
                    raise RegistryUnreachable(
                        f"MLflow does not answer at {self.uri} ({what}); start the local stack with `streamgru up`, or "
                        "set STREAMGRU_MLFLOW_TRACKING_URI to your server's address"
                    ) from error
                if version is not None and is_missing(error):
                    raise ModelMissing(
                        f"{self.model_name} has no version {version} in MLflow at {self.uri}; `streamgru models` lists "
                        "those there are"
                    ) from error
                raise RegistryError(f"MLflow at {self.uri} refused {what}: {error}") from error


def mlflow_error() -> type[Any]:
    """The class of MLflow's errors, for an ``except`` clause."""
    from mlflow.exceptions import MlflowException

    kind: type[Any] = MlflowException
    return kind


def _transfer_error() -> type[Any]:
    """The class of what MLflow's client lets through of uploads that fail, such as for want of room."""
    from requests.exceptions import RequestException

    kind: type[Any] = RequestException
    return kind


def is_missing(error: Any) -> bool:
    """Whether MLflow says that a model, version or alias does not exist (of an alias it says so in words only)."""
    code = getattr(error, "error_code", None)
    return code == "RESOURCE_DOES_NOT_EXIST" or (
        code == "INVALID_PARAMETER_VALUE" and "alias" in str(error) and "not found" in str(error)
    )


def is_unreachable(error: BaseException) -> bool:
    """Whether an error, or one that led to it, is of the connection, or of the server's inside."""
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
    """MLflow's settings for a few calls."""
    wanted = {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_REGISTRY_URI": uri,  # where `models:/…` is looked up, by default in the one above
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
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
