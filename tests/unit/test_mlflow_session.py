"""Errors of the HTTP library that MLflow passes on become registry errors."""

import pytest
from requests.exceptions import ConnectionError as NoConnection
from requests.exceptions import HTTPError

from pipeline.errors import RegistryError, RegistryUnreachable
from pipeline.registry.mlflow_session import MlflowSession

SESSION = MlflowSession("http://localhost:9", "model")


def test_a_refused_upload_names_the_server_and_the_action() -> None:
    told = "MLflow at http://localhost:9 refused uploading: 507 Server Error"
    with pytest.raises(RegistryError, match=told), SESSION.client("uploading"):
        raise HTTPError("507 Server Error: Insufficient Storage")


def test_an_upload_without_an_answer_means_an_unreachable_registry() -> None:
    told = "does not answer at http://localhost:9"
    with pytest.raises(RegistryUnreachable, match=told), SESSION.client("uploading"):
        raise NoConnection("reset by peer")
