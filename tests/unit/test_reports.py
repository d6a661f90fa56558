"""Every report is rendered from non-zero counters and hostile text, and a report that fails loses no result."""

import io
import logging
import random
import warnings
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from deploy.commands.dlq import dlq
from deploy.context import Context
from deploy.literal_console import make_console, styled
from deploy.terminal_text import say, say_lines
from flows.ingest_report import ingest_page
from flows.prefect_text import publish_link, publish_page
from flows.progress import Progress, report_progress, watch_progress
from model.backtest import Persistence, Scores, backtest
from pipeline.best_effort import best_effort
from pipeline.dead_letters import DeadLetter
from pipeline.evaluation.plots import draw_forecasts, draw_scores
from pipeline.history.ingest import IngestReport
from pipeline.registry.metric_names import metric_names
from pipeline.registry.versions import _quoted
from pipeline.text.json_text import json_text
from pipeline.text.markdown_text import markdown, markdown_link
from pipeline.text.visible_text import VisibleFormatter, visible, visible_bytes, visible_lines
from tests.hostile_reports import REPORTS, SETTINGS, TEXTS, Values, check
from tests.series import CONFIG, HOUR_US, noisy_days

log = logging.getLogger("streamgru.test")
any_text = st.one_of(st.text(st.characters()), st.sampled_from(TEXTS))


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_with_every_counter_and_hostile_text_is_rendered(name: str) -> None:
    for seed in range(5):
        check(name, REPORTS[name](Values(random.Random(seed))))


def is_harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@given(any_text)
def test_any_text_is_printed_without_control_characters(text: str) -> None:
    assert visible(text).isprintable()
    assert visible_bytes(text.encode(errors="surrogatepass")).isprintable()
    assert is_harmless(visible_lines(text))
    assert len(visible(text, 10)) <= 10
    assert json_text({text: text}).isascii()
    assert "<" not in markdown(text)
    assert "\n" not in markdown_link(text, text)
    output = io.StringIO()
    console = make_console(width=80)
    console.file = output
    console.print(text, styled(text, "bold"))
    assert is_harmless(output.getvalue())
    record = logging.LogRecord("a", logging.INFO, "", 0, "%s", (text,), None)
    assert VisibleFormatter("%(message)s").format(record).isprintable()


@given(any_text)
def test_printable_text_is_printed_as_it_is(text: str) -> None:
    if text.isprintable():
        assert visible(text) == text


def test_control_characters_are_shown_as_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    say("\x1b[31mroof[/a]\n\u202e")
    assert capsys.readouterr().out == "\\x1b[31mroof[/a]\\n\\u202e\n"
    say_lines("one\ntwo\x07")
    assert capsys.readouterr().out == "one\ntwo\\x07\n"


def test_long_and_binary_values_are_shortened() -> None:
    assert visible("abcdef", 4) == "abc…"
    assert visible_bytes("é".encode() * 1_000, 5) == "éééé…"
    assert visible_bytes(b"\xff\x1b") == r"b'\xff\x1b'"
    assert visible_bytes(None) == "(none)"


@hypothesis.settings(max_examples=30)
@given(st.lists(any_text, unique=True, min_size=2, max_size=5))
def test_metrics_have_different_names_that_mlflow_accepts(names: list[str]) -> None:
    from mlflow.utils.validation import _validate_metric_name

    made = metric_names(names)
    assert len(set(made.values())) == len(names)
    for name in made.values():
        _validate_metric_name(f"persistence/coverage/{name}")
        assert len(f"persistence/coverage/{name}") <= 250


def test_names_of_metrics_that_mlflow_accepts_stay() -> None:
    assert metric_names(["PM2.5", "wind speed", "é"]) == {name: name for name in ("PM2.5", "wind speed", "é")}


@pytest.mark.parametrize(("name", "quoted"), [("model", "'model'"), ("Anna's", '"Anna\'s"')])
def test_the_name_of_a_model_does_not_end_in_its_quotes(name: str, quoted: str) -> None:
    assert _quoted(name) == quoted


def test_json_is_valid_without_finite_numbers() -> None:
    assert (
        json_text({("a", 1): float("nan"), "b": [float("inf"), Path("x")]}, None) == '{"a, 1": null, "b": [null, "x"]}'
    )


def test_dlq_list_shows_the_latest_letters_of_all_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Partition 0 is read last and has the oldest letters."""
    values = Values(random.Random(0))
    set_aside = {(1, 0): 500, (1, 1): 700, (2, 0): 700, (2, 1): 10**18, (0, 7): 100, (0, 8): 200, (0, 9): 600}
    letters = [
        values.fill(DeadLetter, at_partition=partition, at_offset=offset, set_aside_ms=moment)
        for (partition, offset), moment in set_aside.items()
    ]
    monkeypatch.setattr("deploy.commands.dlq.read_letters", lambda settings: iter(letters))
    result = CliRunner().invoke(dlq, ["list", "--limit", "4"], obj=Context(lambda: SETTINGS), catch_exceptions=False)
    assert result.output.startswith("7 dead letters: ")
    assert [line.split()[0] for line in result.output.splitlines()[2:]] == ["0:9", "1:1", "2:0", "2:1"]


@pytest.fixture(scope="module")
def scores() -> Scores:
    sequences = noisy_days(sensors=4)
    predictor = Persistence(CONFIG).fit(sequences, 300 * HOUR_US)
    (found,) = backtest([predictor], sequences, CONFIG, 400 * HOUR_US).values()
    return found


@pytest.mark.parametrize("first", range(0, len(TEXTS), 4))
def test_any_name_is_drawn_in_every_plot_without_a_warning(scores: Scores, first: int) -> None:
    texts = TEXTS[first : first + 4]
    sensors = tuple(f"{text}{number}" for number, text in enumerate((texts * 4)[:4]))
    config = replace(CONFIG, features=(texts[0], "other"), targets=texts[:1])
    sequences = replace(noisy_days(sensors=4), sensors=sensors, features=config.features)
    named = replace(scores, sensors=sensors, targets=config.targets)
    predictor = Persistence(config).fit(sequences, 300 * HOUR_US)
    predictor.name = texts[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = [
            draw_scores(dict.fromkeys((texts[0], f"_{texts[0]}"), named)),
            draw_forecasts(predictor, sequences, config, named, 400 * HOUR_US, [predictor]),
        ]
        for figure in figures:
            figure.draw_without_rendering()
    assert len(figures[0].legends[0].get_texts()) == 2


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failing_report_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with best_effort("the plot scores.png", log):
        raise ValueError("no such glyph")
    assert caplog.messages == ["the plot scores.png failed, and everything else continues: ValueError: no such glyph"]


def test_a_progress_bar_that_fails_does_not_end_the_work(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[Progress] = []

    def broken(progress: Progress) -> None:
        calls.append(progress)
        raise RuntimeError("the terminal is gone")

    with watch_progress(broken):
        report_progress(Progress("ingesting", 1.0))
        report_progress(Progress("ingesting", 2.0))
    assert len(calls) == 1
    assert caplog.messages == [
        "the progress of the flow failed, and everything else continues: RuntimeError: the terminal is gone"
    ]


def test_a_page_that_prefect_refuses_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(page: str, **others: object) -> None:
        raise ValueError("invalid key")

    monkeypatch.setattr("flows.prefect_text.create_markdown_artifact", refuse)
    monkeypatch.setattr("flows.prefect_text.create_link_artifact", refuse)
    publish_page("# page", "retrain-gate", "a decision")
    publish_link("http://127.0.0.1/", "a version", "mlflow-version", "a link")
    assert [message.partition(" failed")[0] for message in caplog.messages] == [
        "the page retrain-gate in Prefect",
        "the link mlflow-version in Prefect",
    ]


def test_an_ingest_page_shows_a_loss_without_new_readings_and_at_most_50_rows() -> None:
    page = ingest_page(IngestReport("readings", 0, 0, lost_offsets=7), 3)
    assert page.startswith("## Nothing new on topic readings")
    assert "Retention deleted 7 offsets before they were read." in page
    late = {f"sensor-{number:02}": 1 for number in range(60)}
    page = ingest_page(IngestReport("readings", 9, 9, late=late, ranges={0: (0, 9), 1: (5, 5)}), 4)
    assert "| 0 | 0 | 9 | 9 |" in page
    assert "\n| 1 |" not in page
    assert "sensor-49" in page
    assert "sensor-50" not in page
    assert "Rows that are not shown: 10." in page
    assert ingest_page(IngestReport("readings", 9, 9, 6, 3), 4).startswith("## 6 readings and 3 outlooks from topic")


def test_a_plot_that_fails_leaves_the_scores_the_model_and_the_other_plots(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from pipeline.evaluation import report

    def fail() -> Figure:
        raise ValueError("Expected end of text")

    figures = {"scores.png": fail, "loss.png": Figure}
    (tmp_path / "scores.png").write_bytes(b"an older plot")
    monkeypatch.setattr(report, "plots", lambda done, epochs: figures)
    report.write_plots(None, [], tmp_path)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]
    assert "the plot scores.png failed" in caplog.text
