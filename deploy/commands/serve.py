"""``streamgru serve``: the live page and the API."""

import logging
import os

import click

from deploy.context import Context
from deploy.terminal_text import say


@click.command()
@click.option("--host", metavar="HOST", help="Address to listen on; any but a loopback address needs a token.")
@click.option("--port", type=click.IntRange(1, 65_535), metavar="PORT", help="By default 8050.")
@click.option(
    "--token",
    metavar="TEXT",
    help="Token that browsers and programs must send. Other users of this machine can see the options of a process; "
    "STREAMGRU_SERVE__TOKEN hides it.",
)
@click.pass_obj
def serve(context: Context, host: str | None, port: int | None, token: str | None) -> None:
    """Serve a live page and an API about the stream, until Ctrl-C or SIGTERM.

    The process only reads committed records. It joins no consumer group and commits no offsets, so it can be started,
    killed and restarted at any time without an effect on forecasts. Each option wins over its setting (serve.host,
    serve.port, serve.token). The API is described at /openapi.json.
    """
    from deploy.serve.security import check_reachable
    from deploy.serve.server import ServeProcess
    from pipeline.settings import with_serve

    settings = with_serve(context.settings, host=host, port=port, token=token)
    check_reachable(settings.serve)
    ServeProcess(settings).run(lambda address: say(f"the page is at {address}"))
    # The interpreter's own end would wait for requests to brokers that do not answer.
    logging.shutdown()
    os._exit(0)
