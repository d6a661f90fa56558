"""The ASGI application: routes, the page's files, and errors as JSON."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from deploy.serve import answers, queries, routes
from deploy.serve.event_hub import EventStreamResponse, TooManyStreams
from deploy.serve.openapi import document
from deploy.serve.routes import Backend, Committed, Refused
from deploy.serve.security import COOKIE, Guard, problem
from pipeline.errors import KafkaError
from pipeline.live.record_reader import RecordMissing
from pipeline.live.replayer import parse_event_id

PAGE: Final = Path(__file__).with_name("page")

Probe = Callable[[], tuple[int, answers.Health]]


def make_application(backend: Backend, healthy: Probe, ready: Probe, metrics: Callable[[str], Response]) -> Starlette:
    """The application.

    Args:
        backend: the data of the answers.
        healthy: status and body of /healthz.
        ready: status and body of /readyz.
        metrics: the answer to /metrics for an ``Accept`` header.
    """
    openapi = answers.encode(document())

    async def events(request: Request) -> Any:
        query = routes.parse_query(queries.EventsQuery, request.query_params)
        kinds = routes.parse_kinds(query.kinds)
        text = request.headers.get("last-event-id", "") or query.last_event_id
        since = parse_event_id(text) if text else None
        sensor = query.sensor.encode(errors="surrogateescape") or None
        try:
            stream = backend.hub.open(kinds, sensor, since)
        except TooManyStreams:
            raise Refused(
                503, "all event streams are in use", "close other pages, or raise serve.most_streams"
            ) from None
        return EventStreamResponse(backend.hub, stream)

    async def log_out(request: Request) -> Response:
        response = Response(status_code=204)
        response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return response

    async def log_in(request: Request) -> Response:
        raise Refused(422, "a login is a POST")  # the guard answers every POST

    async def index(request: Request) -> Response:
        if not (PAGE / "index.html").is_file():
            return PlainTextResponse("streamgru serve: the API is described at /openapi.json\n")
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    async def healthz(request: Request) -> Response:
        return _json(*healthy())

    async def readyz(request: Request) -> Response:
        return _json(*ready())

    async def metrics_page(request: Request) -> Response:
        return await run_in_threadpool(metrics, request.headers.get("accept", ""))

    async def openapi_document(request: Request) -> Response:
        return Response(openapi, media_type="application/json")

    special: dict[str, Callable[[Request], Awaitable[Any]]] = {
        "/api/events": events,
        "/api/login": log_in,
        "/api/logout": log_out,
        "/healthz": healthz,
        "/readyz": readyz,
        "/metrics": metrics_page,
        "/openapi.json": openapi_document,
    }
    return Starlette(
        routes=[
            Route("/", index),
            Mount("/page", _PageFiles(directory=PAGE, check_dir=False)),
            *(
                Route(
                    route.path,
                    _endpoint(backend, route) if route.handle is not None else special[route.path],
                    methods=[route.method.upper()],
                )
                for route in routes.ROUTES
            ),
        ],
        middleware=[Middleware(Guard, serve=backend.settings.serve)],
        exception_handlers={Refused: _refused, KafkaError: _kafka_error, HTTPException: _http_error},
    )


class _PageFiles(StaticFiles):
    """The page's files; a browser asks each time whether its copy is still good."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file, or 304."""
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


def _endpoint(backend: Backend, route: routes.Route) -> Callable[[Request], Awaitable[Response]]:
    handle = route.handle
    assert handle is not None

    async def endpoint(request: Request) -> Response:
        query = routes.parse_query(route.query, request.query_params)
        found = await run_in_threadpool(handle, backend, query)
        if isinstance(found, Committed):
            record = found.record
            places = {
                "Streamgru-Partition": str(found.partition),
                "Streamgru-Offset": str(record.offset),
                "Streamgru-Sent-Ms": str(record.timestamp),
            }
            return Response(record.value or b"", headers=places, media_type="application/json")
        return _json(200, found)

    return endpoint


def _json(status: int, content: Any) -> Response:
    return Response(answers.encode(content), status, media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _json(error.status, error.problem)


async def _kafka_error(request: Request, error: Exception) -> Response:
    if isinstance(error, RecordMissing):
        return problem(404, str(error), "reload the list of sensors")
    return problem(503, str(error), "the page is stale until a broker answers")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers) if error.headers else None
    return problem(error.status_code, str(error.detail), "GET /openapi.json lists the addresses", headers)
