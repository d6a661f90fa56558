"""What MLflow's client lets through is told in words."""

import pytest
from requests.exceptions import ConnectionError as NoConnection
from requests.exceptions import HTTPError

from pipeline.errors import RegistryError, RegistryUnreachable
from pipeline.registry.mlflow_session import MlflowSession

SESSION = MlflowSession("http://localhost:9", "model")


def test_an_upload_that_is_refused_names_the_server_and_what_was_sent() -> None:
    told = "MLflow at http://localhost:9 refused uploading: 507 Server Error"
    with pytest.raises(RegistryError, match=told), SESSION.client("uploading"):
        raise HTTPError("507 Server Error: Insufficient Storage")


def test_an_upload_that_nobody_takes_is_an_unreachable_registry() -> None:
    told = "does not answer at http://localhost:9"
    with pytest.raises(RegistryUnreachable, match=told), SESSION.client("uploading"):
        raise NoConnection("reset by peer")
