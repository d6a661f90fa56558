"""``python -m deploy.prefect_process server start …``: Prefect's server, loaded without passes of the collector."""

from importlib import import_module

from deploy.loading import loading

if __name__ == "__main__":
    with loading():
        app = import_module("prefect.cli").app
        import_module("prefect.server.api.server")  # the server itself, which the command line loads later

    app()
