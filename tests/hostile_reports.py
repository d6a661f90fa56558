"""Every report of the product, made from non-zero counters and hostile text and rendered as people and programs see it.

``Values`` fills dataclasses by their types, so a new counter is filled without a change here. Unit tests render each
report from fixed values, and the fuzz target from random ones.
"""

import io
import json
import logging
import random
import sys
import types
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal
from unittest.mock import patch

import click
import msgspec
import numpy as np
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from deploy.commands import dlq, models, stack, topics, verify, watch
from deploy.context import Context
from deploy.demo.display import Display
from deploy.literal_console import TaskText, make_console
from deploy.live_forecasts import LatestForecasts, LiveForecast, format_line
from deploy.score_tables import interval_table, sensor_table
from deploy.stack import ServiceStatus
from deploy.terminal_text import say, show_usage_error
from flows import monitor, prefect_text
from flows.ingest_report import ingest_page
from flows.model_card import LONGEST_DESCRIPTION, CardFacts, model_card
from flows.retrain_report import RetrainReport, horizon_curves, publish, summarise
from flows.run_statistics import RunStatistics, ScheduleState
from flows.schedule_health import answers as schedule_answers
from model.config import Adaptation
from model.forecaster import Forecaster
from model.metrics import Scores
from model.sequences import Split
from model.training import EpochReport, TrainingOptions, TrainingResult
from pipeline.audit.explain import Explanation
from pipeline.audit.verify import AuditResult
from pipeline.dead_letters import DeadLetter, Republication
from pipeline.errors import KafkaError
from pipeline.evaluation.evaluate import MODEL, Evaluation, model_config
from pipeline.evaluation.gate import Decision
from pipeline.export.export import ExportReport
from pipeline.forecaster.counters import Counters
from pipeline.forecaster.health import Statistics, answers
from pipeline.forecaster.metrics import Timings
from pipeline.forecaster.stuck_detection import ForecasterState, Heartbeat
from pipeline.history.ingest import IngestReport
from pipeline.kafka.topics import TopicStatus
from pipeline.messages import Forecast
from pipeline.observability.exposition import Page
from pipeline.observability.log_format import JsonFormatter
from pipeline.registry.training_set import TrainingSet
from pipeline.registry.versions import CHALLENGER, CHAMPION, SCORE_PREFIX, ModelInfo
from pipeline.settings import Settings
from pipeline.settings.sections import MonitorSettings
from pipeline.text.json_text import json_text
from pipeline.text.markdown_text import markdown
from pipeline.text.visible_text import VisibleFormatter
from tests.chaos.harness import Record
from tests.chaos.report import as_json, as_markdown
from tests.series import HOUR_US, noisy_days

# Text that is markup, a command or a hazard somewhere.
TEXTS: Final = (
    *("[/plant/line1]", "roof[/a]", "[bold red]", "$GPS_1_$", "$\\frac{1}{0}$", "_hidden", "^a$", "*", "a\\b"),
    *("<script>alert(1)</script>", "a|b", "`code`", "[x](javascript:alert(1))", "{0}", "%s %d", "${value}", "'; --"),
    *("\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "a\nb", "a\r\nforged", "\x00", "\x9b31m", "\u202etxt.exe", "\u200b"),
    *("漢字", "مرحبا", "\U0001f321", "é" * 700, "\ud800", "sensor", "time", "offset", "timestamp", ".", " ", ":smile:"),
)
FEATURES: Final = ("sensor", "$GPS_1_$", "<script>", "a|b", "[/x]", "مرحبا\u202e")
SETTINGS: Final = Settings(features=FEATURES, targets=FEATURES[1:3], horizon_steps=3)

Render = Callable[["Values"], str]


class Values:
    """Non-zero numbers and hostile text; ``fill`` makes a dataclass of them."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def text(self) -> str:
        """A hostile text, or several of them."""
        return "".join(self.chance.choices(TEXTS, k=self.chance.choice((1, 1, 1, 2, 5))))

    def count(self) -> int:
        """A count above 0."""
        return self.chance.choice((1, 2, 7, 1_000, 10**9, 2**40))

    def number(self) -> float:
        """A number other than 0, seldom a non-finite one."""
        return self.chance.choice((1.5, -2.0, 1e-300, 1e300, 0.1, 37.0, float("nan"), float("inf")))

    def fill(self, kind: Any, **given: Any) -> Any:
        """A dataclass or struct whose fields are ``given`` or filled by their types."""
        hints = typing.get_type_hints(kind)
        names = [each.name for each in fields(kind)] if is_dataclass(kind) else list(kind.__struct_fields__)
        return kind(**{name: given[name] if name in given else self.of(hints[name]) for name in names})

    def of(self, kind: Any) -> Any:
        """A value of a type."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        simple: dict[Any, Callable[[], Any]] = {
            str: self.text,
            int: self.count,
            float: self.number,
            bool: lambda: self.chance.random() < 0.5,
            bytes: lambda: self.text().encode(errors="replace") + self.chance.choice((b"", b"\xff\x1b[2J")),
            datetime: lambda: datetime(2024, 3, 1, 12, 30, tzinfo=UTC),
        }
        if kind in simple:
            return simple[kind]()
        if origin is typing.Annotated:
            return self.of(arguments[0])
        if origin is Literal:
            return self.chance.choice(arguments)
        if origin in (typing.Union, types.UnionType):
            return self.of(next(each for each in arguments if each not in (type(None), msgspec.UnsetType)))
        if origin is Counter:
            return Counter({self.of(arguments[0]): self.count() for _ in range(3)})
        if origin is tuple:
            return tuple(map(self.of, arguments[:1] * 2 if arguments[-1] is Ellipsis else arguments))
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return {self.of(arguments[0]): self.of(arguments[1]) for _ in range(3)}
        if isinstance(origin, type) and issubclass(origin, Sequence):
            return [self.of(arguments[0]) for _ in range(2)]
        return self.fill(kind)

    def scores(self) -> Scores:
        """Scores of three sensors with hostile names."""
        sensors = tuple({self.text() or "s" for _ in range(3)})
        targets, shape = SETTINGS.targets, (len(sensors), len(SETTINGS.targets))
        scores = Scores.empty(sensors, targets, SETTINGS.quantiles, np.ones(shape), SETTINGS.horizon_steps)
        noise = np.random.default_rng(self.chance.randrange(2**32))
        for number in range(len(sensors)):
            forecasts = np.sort(noise.normal(size=(20, len(targets), 3, SETTINGS.horizon_steps)), axis=2)
            scores.add(number, forecasts, noise.normal(size=(20, len(targets), SETTINGS.horizon_steps)))
        return scores

    def forecast(self) -> Forecast:
        """A forecast of a hostile sensor."""
        rows = {str(level): [1.5, -2.0, 1e30] for level in SETTINGS.quantiles}
        forecast: Forecast = self.fill(Forecast, quantiles=dict.fromkeys((*SETTINGS.targets, self.text()), rows))
        return forecast


@contextmanager
def _printed() -> Iterator[io.StringIO]:
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        yield output


def _run(command: click.Command, *arguments: str) -> str:
    result = CliRunner().invoke(command, arguments, obj=Context(lambda: SETTINGS))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def _console_output(*renderables: Any) -> str:
    with _printed() as output:
        console = make_console(width=200)
        for renderable in renderables:
            console.print(renderable)
    return output.getvalue()


# --- audits -----------------------------------------------------------------------------------------------------------


def verify_text(values: Values) -> str:
    with _printed() as output:
        verify._print(values.fill(AuditResult), SETTINGS)
    return output.getvalue()


def verify_json(values: Values) -> str:
    with patch("pipeline.audit.verify.verify", return_value=values.fill(AuditResult)):
        return _run(verify.verify, "--json")


def explain_text(values: Values) -> str:
    shape = (len(SETTINGS.targets), len(SETTINGS.quantiles), SETTINGS.horizon_steps)
    explanation = values.fill(
        Explanation,
        forecast=values.forecast(),
        begun_us=1_451_606_400_000_000,
        published=np.full(shape, values.number()),
        recomputed=np.full(shape, values.number()),
        weights=np.full((shape[0], 6), 0.25),
        has_same_weights=False,
    )
    with _printed() as output:
        verify._print_explanation(SETTINGS, explanation)
    return output.getvalue()


def chaos_json(values: Values) -> str:
    return json_text([_chaos_run(values)])


def chaos_markdown(values: Values) -> str:
    return as_markdown([_chaos_run(values), *json.loads(chaos_json(values)), _chaos_run(values, verdict=None)])


def _chaos_run(values: Values, **given: Any) -> dict[str, Any]:
    return as_json(values.fill(Record, seconds=90.0, verify_s=1.0, **given))


# --- the stream -------------------------------------------------------------------------------------------------------


def counters_line(values: Values) -> str:
    record = logging.LogRecord("streamgru", logging.INFO, "", 0, "counts: %s", (_counters(values).line(),), None)
    return VisibleFormatter("%(message)s").format(record)


def counters_json(values: Values) -> str:
    return _health(values, "/readyz")


def forecaster_metrics(values: Values) -> str:
    return _health(values, "/metrics")


def schedule_probe_json(values: Values) -> str:
    return _schedule(values, "/healthz")


def schedule_metrics(values: Values) -> str:
    return _schedule(values, "/metrics")


def _health(values: Values, path: str) -> str:
    timings = Timings()
    timings.add_batch(values.number(), values.number(), [np.array([values.count()])], values.number())
    monitor: Any = types.SimpleNamespace(
        state=values.chance.choice(list(ForecasterState)), trouble=values.text(), lag={0: values.count()}
    )
    statistics = Statistics(_counters(values), timings, Heartbeat(polled=1.0, committed=2.0, sensors=values.count()))
    return _body(answers(values.text(), statistics, lambda: monitor)[path](""))


def _schedule(values: Values, path: str) -> str:
    statistics = values.fill(RunStatistics, state=values.chance.choice(list(ScheduleState)))
    return _body(schedule_answers(statistics, MonitorSettings())[path](""))


def _body(page: Page) -> str:
    assert page.status in (200, 503), page.body
    return page.body.decode()


def _counters(values: Values) -> Counters:
    counters = Counters()
    for each in fields(Counters):
        filled: Any = Counter({values.text(): values.count()}) if each.name == "dead_letters" else values.count()
        setattr(counters, each.name, filled)
    return counters


def dlq_list(values: Values) -> str:
    letters = [values.fill(DeadLetter) for _ in range(5)]
    with patch.object(dlq, "read_letters", return_value=iter(letters)):
        return _run(dlq.dlq, "list", "--limit", "3")


def dlq_show(values: Values) -> str:
    with patch.object(dlq, "read_letter", return_value=values.fill(DeadLetter)):
        return _run(dlq.dlq, "show", "0:1")


def dlq_republish(values: Values) -> str:
    with patch.object(dlq, "republish_letters", return_value=values.fill(Republication)):
        return _run(dlq.dlq, "republish")


def watch_line(values: Values) -> str:
    with _printed() as output:
        say(format_line(_live(values)))
    return output.getvalue()


def watch_table(values: Values) -> str:
    return _console_output(_latest(values).table(f"{values.count():,} readings: {values.text()}"))


def _live(values: Values) -> LiveForecast:
    forecast = values.forecast()
    readings = dict.fromkeys(forecast.quantiles, values.number())
    live: LiveForecast = values.fill(LiveForecast, forecast=forecast, values=readings, live=True)
    return live


def _latest(values: Values) -> LatestForecasts:
    latest = LatestForecasts()
    latest.update(_live(values) for _ in range(3))
    return latest


def watch_unseen(values: Values) -> str:
    tail = types.SimpleNamespace(known_sensors={values.text() for _ in range(30)})
    sensors = (next(iter(tail.known_sensors)), values.text() + "unseen")
    unseen = watch._UnseenSensors(sensors)
    unseen._deadline = 0.0
    with _printed() as output:
        unseen.check(tail)  # type: ignore[arg-type]
    return output.getvalue()


# --- training ---------------------------------------------------------------------------------------------------------


def score_tables(values: Values) -> str:
    scores = {MODEL: values.scores(), "persistence": values.scores()}
    return _console_output(interval_table(scores), sensor_table(scores[MODEL]))


def retrain_page(values: Values) -> str:
    facts = card_facts(values)
    assert summarise(facts.done.scores)
    assert horizon_curves(facts.done.scores)
    pages: list[str] = []
    with (
        patch.object(prefect_text, "create_markdown_artifact", lambda page, **others: pages.append(page)),
        patch.object(prefect_text, "create_link_artifact", lambda url, link_text, **others: pages.append(link_text)),
    ):
        publish(values.fill(RetrainReport, decision=facts.decision), facts)
    assert len(pages) == 2
    return "\n".join(pages)


def card_page(values: Values) -> str:
    card = model_card(card_facts(values))
    assert len(card.description) <= LONGEST_DESCRIPTION
    return f"{card.complete}\n{card.description}"


def card_facts(values: Values) -> CardFacts:
    """Facts about a version with hostile names."""
    scores = dict.fromkeys((CHALLENGER, CHAMPION, "persistence"), values.scores())
    sensors = tuple({values.text() or "s" for _ in range(3)})
    days = noisy_days(sensors=len(sensors), hours=60)
    data = replace(days, sensors=sensors, features=FEATURES, values=np.resize(days.values, (len(days), len(FEATURES))))
    config = replace(model_config(SETTINGS), sensors=sensors, hidden_size=4)
    split = Split(20 * HOUR_US, 40 * HOUR_US)
    return values.fill(  # type: ignore[no-any-return]
        CardFacts,
        done=Evaluation(CHALLENGER, Forecaster(config), data, split, scores, Adaptation()),
        decision=Decision(values.chance.random() < 0.5, values.text()),
        training_set=values.fill(TrainingSet, next_offsets={"10": 7, "9": 2**40}),
        trained=data,
        options=TrainingOptions(),
        result=TrainingResult(Forecaster(config), [values.fill(EpochReport)], values.text(), 1.0),
        champion=values.count(),
        started_from=None,
    )


def retrain_summary(values: Values) -> str:
    with _printed() as output:
        say(values.fill(RetrainReport))
    return output.getvalue()


def monitor_page(values: Values) -> str:
    now = datetime(2024, 3, 9, tzinfo=UTC)
    appended_at = values.chance.choice((None, datetime.min.replace(tzinfo=UTC)))
    page = monitor.monitor_page(MonitorSettings(), now, datetime(2024, 3, 1, tzinfo=UTC), appended_at)
    return f"{page}\n{markdown(values.text())}"


def ingestion_page(values: Values) -> str:
    return ingest_page(values.fill(IngestReport, ranges={0: (5, 17), 1: (0, 0)}), values.count())


def ingest_summary(values: Values) -> str:
    with _printed() as output:
        say(values.fill(IngestReport))
    return output.getvalue()


def export_summary(values: Values) -> str:
    with _printed() as output:
        say(values.fill(ExportReport, path=Path(values.text())))
    return output.getvalue()


def models_table(values: Values) -> str:
    with patch.object(models, "Registry", lambda settings: types.SimpleNamespace(versions=lambda: _versions(values))):
        return _run(models.models)


def models_json(values: Values) -> str:
    with patch.object(models, "Registry", lambda settings: types.SimpleNamespace(versions=lambda: _versions(values))):
        return _run(models.models, "--json")


def _versions(values: Values) -> list[ModelInfo]:
    metrics = dict.fromkeys(models.COLUMNS, values.number()) | {values.text(): values.number()}
    tags = {"gate.reason": values.text(), values.text(): values.text(), SCORE_PREFIX: values.text()}
    return [values.fill(ModelInfo, metrics=metrics, tags=tags) for _ in range(2)]


# --- servers and errors -----------------------------------------------------------------------------------------------


def topics_table(values: Values) -> str:
    with patch.object(topics, "topic_statuses", return_value=[values.fill(TopicStatus) for _ in range(2)]):
        return _run(topics.topics, "show")


def stack_table(values: Values) -> str:
    with _printed() as output:
        stack.say_lines(stack._table([_service(values) for _ in range(2)]))
    return output.getvalue()


def _service(values: Values) -> ServiceStatus:
    status: ServiceStatus = values.fill(ServiceStatus, log=Path("logs", values.text()))
    return status


def demo_screen(values: Values) -> str:
    console = make_console(width=200)
    display = Display(console)
    with _printed() as output:
        with display.step("Ingest") as task:
            task(values.text())
            task.result = values.text()
        tail: Any = types.SimpleNamespace(readings=values.count(), forecasts=values.count())
        display.watch(tail, values.text(), [_live(values)])
        make_console(width=200).print(display._render())
    return output.getvalue()


def progress_column(values: Values) -> str:
    task: Any = types.SimpleNamespace(description=values.text(), fields={"detail": values.text()})
    return TaskText("doing {task.description} {task.fields[detail]}").render(task).plain


def log_line(values: Values) -> str:
    record = logging.LogRecord(
        "streamgru", logging.WARNING, "", 0, "sensor %s: %s", (values.text(), values.text()), None
    )
    return VisibleFormatter("%(levelname)s %(message)s").format(record)


def log_line_json(values: Values) -> str:
    try:
        raise ValueError(values.text())
    except ValueError:
        caught = sys.exc_info()
    texts = (values.text(), values.text())
    return JsonFormatter().format(
        logging.LogRecord("streamgru", logging.WARNING, "", 0, "sensor %s: %s", texts, caught)
    )


def error_message(values: Values) -> str:
    with _printed() as output:
        show_usage_error(click.BadParameter(f"{values.text()} is not a sensor", param_hint=values.text()))
        say(f"error: {KafkaError(values.text())}", err=True)
    return output.getvalue()


REPORTS: Final[dict[str, Render]] = {
    render.__name__: render
    for render in (
        *(verify_text, verify_json, explain_text, chaos_json, chaos_markdown, counters_line, counters_json),
        *(dlq_list, dlq_show, dlq_republish, watch_line, watch_table, watch_unseen, score_tables, retrain_page),
        retrain_summary,
        card_page,
        ingestion_page,
        *(
            monitor_page,
            ingest_summary,
            export_summary,
            models_table,
            models_json,
            topics_table,
            stack_table,
            demo_screen,
        ),
        *(progress_column, log_line, log_line_json, error_message),
        *(forecaster_metrics, schedule_metrics, schedule_probe_json),
    )
}


def check(name: str, output: str) -> None:
    """Raise ``AssertionError`` if the output could change a terminal, or if JSON is invalid."""
    raw = sorted({letter for letter in output if not letter.isprintable() and letter != "\n"})
    assert not raw, f"{name} shows raw control characters: {raw!r}"
    assert output.strip(), f"{name} shows nothing"
    if name.endswith("_json"):
        json.loads(output, parse_constant=_refuse)
    if name.endswith("_metrics"):
        assert len(list(text_string_to_metric_families(output))) > 10
    if name.endswith("_page"):
        assert "<script>" not in output


def _refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is not JSON")
