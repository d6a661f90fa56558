"""The parts of the demo that need no servers: faults, scores, model swaps, report and processes."""

import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pytest

from deploy.commands.demo import PORT_VARIABLES, _demo_settings, _print_outcome
from deploy.demo.data import LIVE_FROM, Amounts, disturb, prepare
from deploy.demo.live import Arrivals, Decision, Silence, by_second, find_swaps, longest_silence, pace
from deploy.demo.report import Outcome, Step, Version, coverage_by_target, draw_picture, render
from deploy.demo.scores import FORECAST, Agreement, RecordedForecasts, Stretch, agreement, lay_out, score, trace
from deploy.literal_console import make_console
from model.acceptance import ACCEPTED, classify
from model.forecaster import Forecaster
from model.state import blank_states
from model.stepper import Stepper
from pipeline.audit.delivery import ForecastLog, ReadingLog, count_deliveries
from pipeline.evaluation.evaluate import model_config
from pipeline.forecast_encoding import round_to_scale
from pipeline.messages import microseconds
from pipeline.settings import SETTINGS_FILE_VARIABLE, Settings
from tests.ports import free_ports
from tests.waiting import wait_until

HOUR_US = 3_600_000_000
SETTINGS = Settings(features=("a", "b"), targets=("a",), horizon_steps=3, season_steps=4)
SENSORS = ("one", "two")
HOURS = 200


def hourly(days: int, sensors: int = 5, start: datetime = LIVE_FROM) -> pl.DataFrame:
    moments = pl.datetime_range(start, start + timedelta(days=days), "1h", closed="left", eager=True, time_zone="UTC")
    names = pl.DataFrame({"sensor_id": [f"s{number}" for number in range(sensors)]})
    return pl.DataFrame({"timestamp": moments}).join(names, how="cross").with_columns(a=pl.lit(1.0))


# --- faults -----------------------------------------------------------------------------------------------------------


def test_faults_repeat_with_their_seed_and_add_up() -> None:
    frame = hourly(days=365)
    faults = disturb(frame, seed=3)
    assert faults.frame.equals(disturb(frame, seed=3).frame)
    assert not faults.frame.equals(disturb(frame, seed=4).frame)
    assert len(faults.frame) == len(frame) - faults.left_out + faults.sent_twice
    assert len(faults.outages) == 4
    for sensor, since, until in faults.outages:
        silent = faults.frame.filter(
            (pl.col("sensor_id") == sensor) & pl.col("timestamp").is_between(since, until, closed="left")
        )
        assert silent.is_empty()


def test_late_and_repeated_readings_are_recognised_by_the_rule_of_acceptance() -> None:
    faults = disturb(hourly(days=365), seed=3)
    verdicts = classify(
        faults.frame["sensor_id"].rank("dense").cast(pl.Int64).to_numpy(),
        faults.frame["timestamp"].dt.timestamp("us").to_numpy(),
    )
    late, duplicates = int((verdicts == 2).sum()), int((verdicts == 1).sum())
    # A late reading that is sent twice counts as late twice. A delayed reading is accepted if no later one overtook it.
    assert faults.sent_late * 0.9 < late <= faults.sent_late * 1.1
    assert faults.sent_twice * 0.9 < duplicates <= faults.sent_twice


def test_the_history_is_cut_in_two_and_the_live_readings_are_in_sending_order(tmp_path: Path) -> None:
    frame = pl.concat([hourly(60, start=LIVE_FROM - timedelta(days=60)), hourly(30)])
    data = prepare(frame, Amounts(sensors=3, history_days=40, live_days=20), ["a"], tmp_path)
    older, newer = (pl.read_parquet(part) for part in data.history)
    history = pl.concat([older, newer])
    assert data.sensors == 3
    assert (len(older), len(newer)) == data.history_readings
    assert len(older) == len(newer) == 20 * 24 * 3
    assert history["timestamp"].is_sorted()
    sent = data.live.frame
    assert np.array(data.table.sensors)[data.table.sensor_codes].tolist() == sent["sensor_id"].to_list()
    np.testing.assert_array_equal(data.table.timestamp_us, sent["timestamp"].dt.timestamp("us"))
    np.testing.assert_array_equal(data.table.values["a"], sent["a"])
    verdicts = classify(data.table.sensor_codes, data.table.timestamp_us)
    assert data.accepted == int((verdicts == ACCEPTED).sum()) <= len(sent)


# --- scores -----------------------------------------------------------------------------------------------------------


def readings_log() -> ReadingLog:
    """Two sensors, hourly, a sawtooth of period 4 that steps up once a day; one reading is missing."""
    hours = np.tile(np.arange(HOURS), 2)
    sensor = np.repeat([0, 1], HOURS)
    values = np.stack([(hours % 4) + 10.0 * sensor + hours // 24, np.zeros(2 * HOURS)], axis=1)
    kept = ~((sensor == 1) & (hours == 100))
    count = int(kept.sum())
    return ReadingLog(
        sensors=SENSORS,
        partition=np.zeros(count, dtype=np.int32),
        offset=np.arange(count, dtype=np.int64),
        sensor=sensor[kept],
        timestamp_us=microseconds(LIVE_FROM) + hours[kept] * HOUR_US,
        values=values[kept],
        sent_ms=np.zeros(count, dtype=np.int64),
        verdict=np.full(count, ACCEPTED, dtype=np.int8),
    )


def forecasts_log(readings: ReadingLog, error: float) -> ForecastLog:
    """Forecasts from hour 50 on: the true value plus ``error``, with quantiles ±1 away. Sensor indexes are swapped."""
    hours = (readings.timestamp_us - microseconds(LIVE_FROM)) // HOUR_US
    rows = np.flatnonzero(hours >= 50)
    ahead = hours[rows][:, None] + np.arange(1, 4)
    median = (ahead % 4) + 10.0 * readings.sensor[rows][:, None] + ahead // 24 + error
    quantiles = np.stack([median - 1.0, median, median + 1.0], axis=1)[:, None]
    return ForecastLog(
        sensors=SENSORS[::-1],
        partition=np.zeros(len(rows), dtype=np.int32),
        offset=np.arange(len(rows), dtype=np.int64),
        sensor=1 - readings.sensor[rows],
        issued_us=readings.timestamp_us[rows],
        input_offset=readings.offset[rows],
        input_partition=np.zeros(len(rows), dtype=np.int32),
        version=np.ones(len(rows), dtype=np.int64),
        warm=np.ones(len(rows), dtype=np.bool_),
        sent_ms=np.zeros(len(rows), dtype=np.int64),
        quantiles=quantiles.astype(np.float32),
    )


def recorded(error: float = 0.5) -> RecordedForecasts:
    readings = readings_log()
    return lay_out(readings, forecasts_log(readings, error), SETTINGS)


def test_errors_and_coverage_are_those_of_the_forecasts_on_the_topic() -> None:
    scores = score(recorded(error=0.5), SETTINGS)
    np.testing.assert_allclose(scores[FORECAST].by_horizon("mae"), 0.5, atol=1e-5)
    assert coverage_by_target(scores[FORECAST]) == {"a": 1.0}
    assert coverage_by_target(score(recorded(error=1.5), SETTINGS)[FORECAST]) == {"a": 0.0}


def test_a_sensor_without_forecasts_is_not_scored() -> None:
    every = recorded()
    hidden = every.row.copy()
    hidden[slice(*every.sequences.span(0))] = -1
    scores = score(replace(every, row=hidden), SETTINGS)
    assert not scores[FORECAST].count[0].any()
    np.testing.assert_array_equal(scores[FORECAST].count[1], score(every, SETTINGS)[FORECAST].count[1])


def test_baselines_are_scored_over_the_same_forecasts_and_labels() -> None:
    scores = score(recorded(), SETTINGS)
    assert set(scores) == {FORECAST, "persistence", "seasonal naive"}
    for found in scores.values():
        np.testing.assert_array_equal(found.count, scores[FORECAST].count)
    # 150 and 149 forecasts. The last k of each sensor have no label yet, and one label is the missing reading.
    np.testing.assert_array_equal(scores[FORECAST].n[0], [150 + 149 - 2 * k - 1 for k in (1, 2, 3)])
    assert scores["seasonal naive"].by_horizon("mae").max() < scores["persistence"].by_horizon("mae").min()


def streamed(forecaster: Forecaster) -> ForecastLog:
    """Forecasts of ``forecaster``: the first sensor's from one state, the second's from the states of two versions."""
    readings = readings_log()
    log = forecasts_log(readings, 0.0)
    second = log.sensor == 0
    version = np.where(second & (log.input_offset >= 300), 2, 1)
    origin = np.where(second, np.where(version == 2, 240, 200), 10)
    quantiles = np.empty((len(log), 1, 3, 3), np.float32)
    stepper = Stepper(forecaster, SETTINGS.adaptation)
    for begin, number in ((10, 0), (200, 1), (240, 1)):
        offsets = np.flatnonzero((readings.sensor == number) & (readings.offset >= begin))
        forecasts = stepper.step(
            blank_states(forecaster.config, 1, SETTINGS.adaptation),
            [SENSORS[number]],
            np.zeros(len(offsets), np.int64),
            readings.timestamp_us[offsets],
            readings.values[offsets],
            readings.offset[offsets],
        )
        rows = np.flatnonzero((log.sensor == 1 - number) & (origin == begin))
        published = round_to_scale(forecasts.quantiles, forecasts.scale, forecasts.limits)
        quantiles[rows] = published[np.searchsorted(offsets, log.input_offset[rows])]
    return replace(log, version=version, origin=origin, quantiles=quantiles)


def test_the_evaluator_agrees_with_the_stream_and_finds_a_changed_forecast() -> None:
    forecaster = Forecaster(replace(model_config(SETTINGS), hidden_size=4, sensors=SENSORS[:1]))
    readings, log = readings_log(), streamed(forecaster)
    assert log.quantiles is not None

    def compared(log: ForecastLog) -> Agreement:
        return agreement(lay_out(readings, log, SETTINGS), readings, log, lambda version: forecaster, SETTINGS)

    agreed = compared(log)
    assert (agreed.compared, agreed.different, agreed.holds) == (len(log), 0, True)
    assert agreed.largest_mae < 1e-5
    other = log.quantiles.copy()
    other[7, 0, 1, 2] += 0.01
    found = compared(replace(log, quantiles=other))
    assert (found.different, found.holds) == (1, False)
    assert found.largest == pytest.approx(0.01 / np.std(readings.values[:HOURS, 0]), rel=0.5)


def test_a_trace_has_gaps_at_missing_readings_and_missing_forecasts() -> None:
    middle_us = microseconds(LIVE_FROM) + 100 * HOUR_US
    found = trace(recorded(error=0.0), SETTINGS, Stretch("two", "a", middle_us, steps=20, lead_steps=2), [])
    assert np.flatnonzero(np.isnan(found.actual)).tolist() == [10]
    assert np.flatnonzero(np.isnan(found.median)).tolist() == [12]
    known = ~np.isnan(found.actual) & ~np.isnan(found.median)
    np.testing.assert_allclose(found.median[known], found.actual[known], atol=1e-5)


def test_a_trace_has_whole_forecasts_beside_the_true_values() -> None:
    middle_us = microseconds(LIVE_FROM) + 150 * HOUR_US
    found = trace(recorded(error=0.0), SETTINGS, Stretch("one", "a", middle_us, steps=20, lead_steps=2), [])
    assert len(found.fans) == 4  # one per season, if its whole horizon fits
    for fan in found.fans:
        at = np.searchsorted(found.moments, fan.moments)
        assert len(fan.moments) == SETTINGS.horizon_steps
        np.testing.assert_array_equal(found.moments[at], fan.moments)
        np.testing.assert_allclose(fan.median, found.actual[at], atol=1e-5)
        np.testing.assert_allclose(fan.high - fan.low, 2.0, atol=1e-5)


# --- model swaps ------------------------------------------------------------------------------------------------------


def arrivals(pause_s: float = 0.0) -> Arrivals:
    """Two partitions with a forecast every 0.1 s. Version 2 begins at 10 s, in the second partition after a pause."""
    moments = np.arange(0, 20, 0.1)
    second = np.where(moments >= 10, moments + pause_s, moments)
    sent = np.concatenate([moments, moments]) - 0.05
    arrived = np.concatenate([moments, second])
    order = np.argsort(arrived, kind="stable")
    return Arrivals(
        arrived_s=1_000 + arrived[order],
        delay_s=(arrived - sent)[order],
        version=np.tile(np.where(moments >= 10, 2, 1), 2)[order],
        partition=np.repeat([0, 1], len(moments))[order],
    )


def test_the_pause_of_a_swap_is_the_longest_wait_of_any_partition() -> None:
    (swap,) = find_swaps(arrivals(pause_s=1.5))
    assert (swap.version_before, swap.version_after) == (1, 2)
    assert swap.first_s == pytest.approx(1_010.0)
    assert swap.last_s == pytest.approx(1_011.5)
    assert swap.pause_s == pytest.approx(1.55)
    assert swap.usual_pause_s < 0.11


def test_time_without_a_waiting_reading_does_not_count_as_a_pause() -> None:
    steady = arrivals()
    later = np.where(steady.version == 2, 60.0, 0.0)  # no reading was sent for a minute before the swap
    (swap,) = find_swaps(Arrivals(steady.arrived_s + later, steady.delay_s, steady.version, steady.partition))
    assert swap.pause_s < 0.11


def test_the_longest_silence_is_that_of_the_partition_that_waited_longest() -> None:
    silence = longest_silence(arrivals(pause_s=1.5))
    assert silence is not None
    assert (silence.partition, silence.is_short) == (1, True)
    assert silence.seconds == pytest.approx(1.55)


def test_a_silence_begins_when_a_reading_waits() -> None:
    steady = arrivals()
    later = np.where(steady.version == 2, 60.0, 0.0)  # no reading was sent for a minute before the swap
    moved = Arrivals(steady.arrived_s + later, steady.delay_s, steady.version, steady.partition)
    silence = longest_silence(moved)
    assert silence is not None
    assert silence.seconds < 0.11


def test_a_silence_without_known_send_times_counts_from_the_forecast_before() -> None:
    unseen = arrivals(pause_s=1.5)
    silence = longest_silence(
        Arrivals(unseen.arrived_s, np.full(len(unseen), np.nan), unseen.version, unseen.partition)
    )
    assert silence is not None
    assert silence.seconds == pytest.approx(1.6)


def test_the_sender_keeps_its_pace_between_its_limits() -> None:
    assert pace(1_000, 10.0, slowest=24.0, fastest=2_000.0) == 100.0
    assert pace(1_000, -1.0, slowest=24.0, fastest=2_000.0) == 2_000.0  # behind schedule
    assert pace(0, 10.0, slowest=24.0, fastest=2_000.0) == 24.0  # ahead of schedule, but no partition falls silent
    assert pace(-5, -1.0, slowest=24.0, fastest=2_000.0) == 24.0


def test_a_declined_model_is_not_promoted_and_the_demo_says_why() -> None:
    declined = Decision(2, False, "declined: mean pinball is 0.2, against 0.1 of the champion").standing
    assert "declined: mean pinball is 0.2" in declined
    assert "does not promote a worse model" in declined
    assert Decision(2, True, "promoted: lower").standing == "champion. The gate promoted: lower"


def test_a_stream_of_one_version_has_no_swap() -> None:
    steady = arrivals()
    only = Arrivals(steady.arrived_s, steady.delay_s, np.ones_like(steady.version), steady.partition)
    assert find_swaps(only) == []


def test_seconds_count_every_forecast_once() -> None:
    seconds = by_second(arrivals())
    assert seconds.versions == (1, 2)
    assert seconds.rate.sum() == len(arrivals())
    assert seconds.rate[0, 5] == 20
    np.testing.assert_allclose(seconds.delay_median_s, 0.05, atol=1e-6)


# --- the report -------------------------------------------------------------------------------------------------------


def outcome() -> Outcome:
    readings = readings_log()
    forecasts = forecasts_log(readings, 0.5)
    middle_us = microseconds(LIVE_FROM) + 100 * HOUR_US
    silent = [(LIVE_FROM + timedelta(hours=100), LIVE_FROM + timedelta(hours=101))]
    return Outcome(
        audit=count_deliveries(readings, forecasts, {0: 50}),
        sensors=2,
        history_readings=3_000,
        faults=disturb(hourly(days=60), seed=1),
        scores=score(recorded(), SETTINGS),
        agreement=Agreement(compared=300, different=0, largest=2e-7, largest_mae=3e-8),
        traces=[trace(recorded(), SETTINGS, Stretch("two", "a", middle_us, 96, 2), silent)],
        seconds=by_second(arrivals(0.5)),
        swaps=find_swaps(arrivals(0.5)),
        silence=Silence(partition=1, seconds=0.55),
        retraining=(1_004.0, 1_008.0),
        versions=[Version(1, datetime(2026, 1, 1, tzinfo=UTC), {"pinball": 0.5, "pinball.naive": 0.6}, "by the gate")],
        steps=[Step("Start <everything>", "up & running", 1.5)],
        took_s=235.4,
    )


def test_the_report_is_one_page_that_needs_no_network() -> None:
    page = render(outcome())
    addresses = set(re.findall(r'(?:href|src)="?(?!#)([^"\s>]+)', page))
    assert addresses == set()
    assert page.count("<svg") == 4
    assert "Start &lt;everything&gt;" in page
    assert "up &amp; running" in page
    assert "<script" not in page
    assert "mean pinball loss 0.5; seasonal naive 0.6" in page
    assert "0 of 300 forecasts differ from the evaluator's" in page
    assert "longest wait of a partition for a forecast while readings arrived: 0.55 s, in partition 1" in page
    assert "<td>together</td><td></td><td>235 s</td>" in page


def test_hostile_names_are_text_on_the_page_and_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "<script>$GPS_1_$ [/a] \x1b[31m\u202e"
    made = outcome()
    named = {predictor: replace(found, targets=(name,)) for predictor, found in made.scores.items()}
    hostile = replace(
        made,
        scores=named,
        traces=[replace(made.traces[0], sensor=name, target=name)],
        versions=[replace(made.versions[0], standing=name)],
        steps=[Step(name, f"`{name}`", 1.5)],
        audit=replace(made.audit, lost=7, twice=8, out_of_order=9, unexpected=10, examples={name: [name]}),
    )
    page = render(hostile)
    assert page.count("<svg") == 4
    assert "<script" not in page
    assert "<code>&lt;script&gt;$GPS_1_$ [/a] \\x1b[31m\\u202e</code>" in page
    _print_outcome(hostile, Path("home"), make_console(width=200))
    shown = capsys.readouterr().out
    assert all(line.isprintable() for line in shown.split("\n"))
    assert "lost 7, twice 8, out of order 9, unexpected 10" in shown
    assert "$GPS_1_$ [/a] \\x1b[31m\\u202e" in shown


def test_a_plot_of_the_report_that_fails_leaves_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.demo.report.draw_run", lambda *arguments: 1 / 0)
    page = render(outcome())
    assert page.count("<svg") == 3
    assert "The plot of rates and delays could not be drawn" in page


def test_the_picture_is_a_small_png(tmp_path: Path) -> None:
    draw_picture(outcome().traces, tmp_path / "forecasts.png")
    content = (tmp_path / "forecasts.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) < 150_000


# --- the demo's processes ---------------------------------------------------------------------------------------------

# `models` waits, because its MLflow accepts connections and never answers.
PARENT = """
import sys, time
from pathlib import Path
from deploy.child_processes import Children
children = Children(Path(sys.argv[1]))
print(children.start("waiting", "models").process.pid, flush=True)
time.sleep(60)
"""


def test_processes_of_the_demo_end_when_the_demo_is_killed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = os.environ | {"STREAMGRU_MLFLOW_TRACKING_URI": address, "STREAMGRU_HOME": str(tmp_path)}
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        try:
            silent.settimeout(30)
            connection, _ = silent.accept()
            assert child.is_running()
            parent.send_signal(signal.SIGKILL)
            parent.communicate(timeout=10)
            wait_until(lambda: not is_alive(child), 10, "the child ended")
            connection.close()
        finally:
            parent.kill()
            if is_alive(child):
                child.kill()


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_the_demo_ignores_other_settings_and_names_their_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STREAMGRU_HOME", str(tmp_path))
    for variable, port in zip(PORT_VARIABLES.values(), free_ports(len(PORT_VARIABLES)), strict=True):
        monkeypatch.setenv(variable, str(port))
    mine = tmp_path / "mine.toml"
    mine.write_text('features = ["x"]\ntargets = ["x"]\n')
    monkeypatch.setenv(SETTINGS_FILE_VARIABLE, str(mine))
    monkeypatch.setenv("STREAMGRU_TARGETS", '["x"]')
    monkeypatch.setenv("STREAMGRU_KAFKA__SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("STREAMGRU_FORECASTER__HEALTH_PORT", "8080")
    settings = _demo_settings()
    assert "x" not in (*settings.features, *settings.targets)
    assert settings.kafka.security_protocol == "PLAINTEXT"
    assert settings.forecaster.health_port is None
    assert str(mine) in capsys.readouterr().err
    _demo_settings()
    assert "mine.toml" not in capsys.readouterr().err
