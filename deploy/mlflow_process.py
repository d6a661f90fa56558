"""``python -m deploy.mlflow_process server …``: MLflow's server, with the arguments of ``mlflow``, in one process.

``mlflow server`` loads all of MLflow, and then starts uvicorn in a second process, which loads it again. That takes
seconds more, and the first process keeps its memory. Here uvicorn runs in the process that MLflow has prepared.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

# Before MLflow, which prepares its application for a server only if a server is loaded.
from uvicorn.main import main as uvicorn

from deploy.loading import loading


def serve(command: Sequence[str], extra_env: Mapping[str, str], **options: Any) -> NoReturn:
    """Run uvicorn with the arguments of ``command``, which is ``python -m uvicorn …``, in this process."""
    os.environ.update(extra_env)
    uvicorn.main(args=list(command[3:]), prog_name="uvicorn")
    sys.exit(0)


if __name__ == "__main__":
    with loading():
        import mlflow.server
        import mlflow.server.fastapi_app
        from mlflow.cli import cli

    # A version of MLflow without this function ignores the assignment and starts uvicorn in a second process.
    mlflow.server._exec_cmd = serve
    cli()
