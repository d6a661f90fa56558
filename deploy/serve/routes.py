"""The addresses of ``streamgru serve``: one entry each, from which the server and the OpenAPI document are made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from deploy.serve import answers, queries, reports
from deploy.serve.event_hub import KINDS, EventHub
from deploy.serve.registry_report import RegistryReports
from pipeline.kafka.record_batch import FetchedRecord
from pipeline.live.record_log import RecordPlace
from pipeline.live.record_reader import RecordReaders
from pipeline.live.sensor_history import MOST_RECORDS, HistoryReader
from pipeline.live.view import LiveView
from pipeline.settings import Settings

_MOST_STEPS: Final = 8


class Refused(Exception):
    """A request that cannot be answered."""

    def __init__(self, status: int, error: str, remedy: str = "") -> None:
        super().__init__(error)
        self.status = status
        self.problem = answers.Problem(error, remedy)


@dataclass(frozen=True)
class Backend:
    """Everything that the answers are made from."""

    settings: Settings
    view: LiveView
    hub: EventHub
    readers: RecordReaders
    histories: HistoryReader
    registry: RegistryReports


@dataclass(frozen=True)
class Committed:
    """A committed record, whose bytes are the answer."""

    record: FetchedRecord
    partition: int


@dataclass(frozen=True)
class Route:
    """An address, its parameters and its answer."""

    path: str
    summary: str
    query: type[msgspec.Struct]
    answer: Any  # type of the JSON; None for another form
    handle: Callable[[Backend, Any], Any] | None  # None: the server itself answers
    media_type: str = "application/json"
    method: str = "get"
    body: Any = None
    problems: tuple[int, ...] = (401, 403, 422)
    headers: Mapping[str, str] = field(default_factory=dict)  # of the answer, with descriptions
    events: Mapping[str, Any] = field(default_factory=dict)  # name of an event -> type of its data


def parse_query(kind: type[msgspec.Struct], given: Mapping[str, str]) -> Any:
    """The parameters of a request.

    Raises:
        Refused: a parameter is unknown, missing or outside its limits.
    """
    names = [one.name for one in msgspec.structs.fields(kind)]
    if unknown := sorted(set(given) - set(names)):
        known = ", ".join(names) or "none"
        raise Refused(422, f"there is no parameter {unknown[0]!r}", f"the parameters are: {known}")
    try:
        return msgspec.convert(dict(given), kind, strict=False)
    except msgspec.ValidationError as error:
        raise Refused(422, str(error), "see /openapi.json for the parameters") from None


def parse_kinds(text: str) -> frozenset[str]:
    """The kinds of events in a list with commas; all for an empty text.

    Raises:
        Refused: one of them does not exist.
    """
    kinds = frozenset(filter(None, text.split(",")))
    if unknown := sorted(kinds - set(KINDS)):
        raise Refused(422, f"there is no kind of events {unknown[0]!r}", f"the kinds are {', '.join(KINDS)}")
    return kinds or frozenset(KINDS)


# --- the answers ------------------------------------------------------------------------------------------------------


def _models(backend: Backend, _: Any) -> answers.Models:
    checked_ms, trouble, versions = backend.registry.models()
    with backend.view.locked() as view:
        champion, swaps = view.champion, list(view.swaps)
    serving = None if champion is None else answers.Champion(*champion)
    return answers.Models(serving, list(map(reports.swap, swaps)), checked_ms, trouble, versions)


def _sensors(backend: Backend, query: queries.ListPage) -> answers.Sensors:
    descending = query.order == "desc" or (query.order == "" and query.sort != "name")
    page = reports.ListQuery(query.search, query.sort, descending, query.offset, query.limit)
    return reports.sensors(backend.view, page)


def _sensor(backend: Backend, query: queries.SensorQuery) -> answers.SensorRow:
    row = reports.sensor(backend.view, query.sensor)
    if row is None:
        raise _unknown(query.sensor)
    return row


def _forecast_of_sensor(backend: Backend, query: queries.ForecastQuery) -> Committed:
    places = _places(backend, query.sensor, 1 if not query.back else query.back + 1)
    if not query.back:
        return Committed(backend.histories.record(places[0]), places[0].partition)
    found = backend.histories.forecast_before(places, query.back)
    if found is None:
        raise Refused(
            404,
            f"no forecast of this sensor that was issued {query.back} cadences before its latest one can be located",
            "raise serve.look_back_records or serve.history_records, if it exists",
        )
    place, record = found
    return Committed(record, place.partition)


def _forecast_at(backend: Backend, query: queries.PlaceQuery) -> Committed:
    if query.partition >= backend.view.partitions:
        raise Refused(404, f"the topic has no partition {query.partition}")
    topic = backend.settings.kafka.topics.forecasts
    return Committed(backend.readers.read(topic, query.partition, query.offset), query.partition)


def _history(backend: Backend, query: queries.HistoryQuery) -> answers.History:
    steps = _steps(query.steps, backend.settings.horizon_steps)
    # The first readings need the forecasts that were made before them.
    most = min(MOST_RECORDS, max(query.count + max(steps, default=0), query.forecasts))
    found = backend.histories.read(_places(backend, query.sensor, most))
    return reports.history(query.sensor, found, query.count, steps, min(query.forecasts, len(found)))


def _sensor_scores(backend: Backend, query: queries.ScoresQuery) -> answers.SensorScores:
    found = backend.histories.read(_places(backend, query.sensor, query.count))
    return reports.sensor_scores(query.sensor, found)


def _places(backend: Backend, sensor: str, most: int) -> list[RecordPlace]:
    with backend.view.locked() as view:
        row = view.index.sensors.find(sensor.encode(errors="surrogateescape"))
        if row is None:
            raise _unknown(sensor)
        return view.index.places(row, most)


def _unknown(sensor: str) -> Refused:
    return Refused(
        404, f"no forecast of sensor {sensor!r} was seen", "GET /api/sensors lists the sensors; ids are case-sensitive"
    )


def _steps(text: str, horizon_steps: int) -> list[int]:
    parts = [part for part in text.split(",") if part]
    if len(parts) > _MOST_STEPS or not all(part.isdecimal() and 1 <= int(part) <= horizon_steps for part in parts):
        raise Refused(422, f"steps are at most {_MOST_STEPS} numbers from 1 to {horizon_steps}", "such as steps=1,6,24")
    return sorted(set(map(int, parts)))


_COMMITTED_HEADERS: Final = {
    "Streamgru-Partition": "partition of the record",
    "Streamgru-Offset": "offset of the record",
    "Streamgru-Sent-Ms": "Kafka timestamp of the record",
}
_READS: Final = (401, 403, 404, 422, 503)

EVENTS: Final = {
    "forecasts": answers.ForecastsData,
    "dead_letter": answers.Letter,
    "status": answers.Status,
    "reset": answers.ResetData,
}

ROUTES: Final = (
    Route(
        "/api/about", "The program, its settings and links.", queries.NoQuery, answers.About,
        lambda backend, _: reports.about(backend.settings, backend.view),
    ),
    Route(
        "/api/status", "The stream at a glance.", queries.NoQuery, answers.Status,
        lambda backend, _: reports.status(backend.view, backend.hub.clients),
    ),
    Route(
        "/api/partitions", "The lag of each partition.", queries.NoQuery, answers.Partitions,
        lambda backend, _: reports.partitions(backend.view),
    ),
    Route(
        "/api/rates", "Throughput and delays of the last ten minutes.", queries.NoQuery, answers.Rates,
        lambda backend, _: reports.rates(backend.view),
    ),
    Route("/api/models", "The champion, model swaps and versions.", queries.NoQuery, answers.Models, _models),
    Route(
        "/api/dead-letters", "Dead letters by reason.", queries.NoQuery, answers.DeadLetters,
        lambda backend, _: reports.dead_letters(backend.view),
    ),
    Route(
        "/api/flows", "Overdue flows.", queries.NoQuery, answers.Flows, lambda backend, _: backend.registry.flows()
    ),
    Route(
        "/api/scores", "Live scores over all sensors, one step ahead.", queries.NoQuery, answers.Scores,
        lambda backend, _: reports.scores(backend.settings, backend.view),
    ),
    Route("/api/sensors", "A page of the sensor list.", queries.ListPage, answers.Sensors, _sensors),
    Route("/api/sensor", "One row of the sensor list.", queries.SensorQuery, answers.SensorRow, _sensor,
          problems=(401, 403, 404, 422)),
    Route(
        "/api/sensor/forecast", "A sensor's latest forecast, or an earlier one: the bytes of the committed record.",
        queries.ForecastQuery, Committed, _forecast_of_sensor, problems=_READS, headers=_COMMITTED_HEADERS,
    ),
    Route(
        "/api/forecast", "A forecast by its place: the bytes of the committed record.",
        queries.PlaceQuery, Committed, _forecast_at, problems=_READS, headers=_COMMITTED_HEADERS,
    ),
    Route(
        "/api/sensor/history", "A sensor's latest readings, and the earlier forecasts for their times.",
        queries.HistoryQuery, answers.History, _history, problems=_READS,
    ),
    Route(
        "/api/sensor/scores", "Scores of a sensor by step, from its latest forecasts.",
        queries.ScoresQuery, answers.SensorScores, _sensor_scores, problems=_READS,
    ),
    Route(
        "/api/events", "Live events: forecasts, dead_letter, status and reset.", queries.EventsQuery,
        None, None, events=EVENTS,
        media_type="text/event-stream", problems=(401, 403, 422, 503),
    ),
    Route(
        "/api/login", "Exchange the token for a cookie.", queries.NoQuery, None, None, method="post",
        body=answers.Login, problems=(401, 403, 422),
    ),
    Route("/api/logout", "Forget the cookie.", queries.NoQuery, None, None, method="post", problems=(403,)),
    Route("/healthz", "200 while the topics are followed.", queries.NoQuery, answers.Health, None, problems=(403, 503)),
    Route("/readyz", "200 once the look back is read and a broker answers.", queries.NoQuery, answers.Health, None,
          problems=(403, 503)),
    Route("/metrics", "Metrics for Prometheus.", queries.NoQuery, None, None, media_type="text/plain", problems=(403,)),
    Route("/openapi.json", "This document.", queries.NoQuery, None, None, problems=(403,)),
)  # fmt: skip
