"""The page of ``make quality`` tabulates the results on disk, and shows commands that anyone can type."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from model.backtest import SeasonalNaive, backtest, baselines
from model.sequences import Split
from pipeline.evaluation.report import scores_content
from tests.benchmarks import ablation, gift_section, quality_report, quality_results, short_series
from tests.benchmarks.ablation import _without_calendar
from tests.benchmarks.quality import BEIJING, Task, back_tests
from tests.series import CONFIG, HOUR_US, noisy_days

START_US = 400 * HOUR_US
RUNS = list(back_tests(Path("/somewhere/ETTh1.csv"), BEIJING))


class Model(SeasonalNaive):
    name = "streamgru"


def results(runs: Path, names: list[str], seeds: tuple[int, ...]) -> None:
    """Write scores.json files as back-tests do."""
    for seed in seeds:
        sequences = noisy_days(seed=seed)
        predictors = [Model(CONFIG).fit(sequences, START_US), *baselines(CONFIG, sequences, START_US)]
        scores = backtest(predictors, sequences, CONFIG, START_US)
        content = {
            "model": {"targets": CONFIG.targets},
            "training": {"seconds": 10.0 * (1 + seed)},
            "scores": {name: scores_content(score) for name, score in scores.items()},
        }
        for name in names:
            folder = runs / f"{name}-seed{seed}"
            folder.mkdir()
            (folder / "scores.json").write_text(json.dumps(content))


def test_every_data_set_and_horizon_has_a_run() -> None:
    assert [run.name for run in RUNS] == [
        *(f"etth1-{horizon}" for horizon in (96, 192, 336, 720)),
        *(f"etth1-stream-{horizon}" for horizon in (1, 24, 48)),
        *(f"beijing-{horizon}" for horizon in (1, 24)),
    ]
    assert [run.name for run in back_tests(None, BEIJING)] == ["beijing-1", "beijing-24"]


def test_the_page_holds_means_over_seeds_beside_the_targets(tmp_path: Path) -> None:
    results(tmp_path, ["etth1-96", "etth1-stream-24", "beijing-24"], (0, 1))
    page = quality_report.written(tmp_path, RUNS, (0, 1, 2))
    assert "| 192 | not run yet |" in page
    (row,) = (line for line in page.splitlines() if line.startswith("| 96 | streamgru |"))
    assert "±" in row
    assert "| ≤ .375 | < .351 | 15 s | 2 |" in row
    assert "| 24 | level | streamgru |" in page
    assert "| etth1-96 | streamgru | 80% |" in page
    for baseline in ("adaptive AR(24)", "seasonal naive", "persistence"):
        assert f"|  | {baseline} |" in page


def test_data_sets_not_used_for_choices_have_their_own_table(tmp_path: Path) -> None:
    runs = list(back_tests(None, BEIJING, others=Path("/somewhere")))
    results(tmp_path, ["other-nyc_taxi-48"], (0,))
    page = quality_report.written(tmp_path, runs, (0, 1))
    (row,) = (line for line in page.splitlines() if line.startswith("| nyc_taxi | 48 | streamgru |"))
    assert row.endswith("| 10 s |")
    assert "streamgru backtest nyc_taxi.csv --timezone UTC --horizon 48" in page
    assert "| other-nyc_taxi" not in page


def test_short_series_are_listed_worst_first_beside_the_best_baseline(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "realTweets"
    folder.mkdir(parents=True)
    for name in ("AAPL", "AMZN"):
        (folder / f"{name}.csv").touch()
    runs = list(back_tests(None, BEIJING, series=tmp_path / "data"))
    names = ["series-AAPL-1", "series-AAPL-12", "series-AMZN-1", "series-AMZN-12"]
    assert [run.name for run in runs][-4:] == names
    results(tmp_path, names, (0,))
    for name in names:
        path = tmp_path / f"{name}-seed0" / "scores.json"
        content = json.loads(path.read_text())
        best = min(content["scores"][baseline]["scaled"]["pinball"] for baseline in short_series.BASELINES)
        content["scores"]["streamgru"]["scaled"]["pinball"] = best * (1.5 if name == "series-AMZN-1" else 0.9)
        path.write_text(json.dumps(content))
    page = quality_report.written(tmp_path, runs, (0,))
    assert "| series within 1.03 of the best baseline | 1 of 2 | 2 of 2 |" in page
    rows = [line for line in page.splitlines() if line.startswith(("| AAPL", "| AMZN"))]
    assert len(rows) == 4
    assert rows[0].startswith("| AMZN | 1 | ")
    assert "streamgru backtest AAPL.csv --timezone UTC --horizon 12 --budget 40" in page
    assert "streamgru backtest AMZN.csv" not in page


def test_the_page_is_the_same_from_kept_results(tmp_path: Path) -> None:
    runs, kept, elsewhere = tmp_path / "runs", tmp_path / "kept", tmp_path / "elsewhere"
    runs.mkdir()
    results(runs, ["etth1-96", "beijing-24"], (0, 1))
    quality_results.keep(runs, kept)
    quality_results.bring(elsewhere, kept)
    assert quality_report.written(elsewhere, RUNS, (0, 1)) == quality_report.written(runs, RUNS, (0, 1))


def test_the_page_names_data_without_local_folders(tmp_path: Path) -> None:
    page = quality_report.written(tmp_path, RUNS, (0, 1))
    assert "streamgru backtest ETTh1.csv --columns-as-sensors" in page
    assert "/somewhere" not in page
    assert "streamgru --settings deploy/beijing.toml backtest deploy/data/beijing.parquet" in page


def test_ablations_are_listed_with_validation_and_test_scores(tmp_path: Path) -> None:
    (variant,) = (variant for variant in ablation.VARIANTS if variant.name == "no lags")
    for seed in (0, 1):
        path = ablation.result_path(tmp_path, variant, seed)
        path.parent.mkdir(exist_ok=True)
        scores = dict.fromkeys(ablation.METRICS, 0.1 + seed)
        path.write_text(json.dumps({"seconds": 3.0, "validation": scores, "test": scores}))
    page = quality_report.written(tmp_path, RUNS, (0, 1))
    assert "| no lags | 0.600 ± 0.707 |" in page


def test_removing_the_calendar_keeps_steps_and_labels() -> None:
    sequences = noisy_days()
    whole_hours = replace(sequences, timestamp_us=sequences.timestamp_us // HOUR_US * HOUR_US)
    split = Split(300 * HOUR_US, 400 * HOUR_US)
    config, stretched, bounds = _without_calendar(CONFIG, whole_hours, split)
    ahead = np.arange(1, 7)
    for sensor in range(3):
        lo, hi = sequences.span(sensor)
        np.testing.assert_array_equal(
            stretched.label_index(lo, hi, ahead, bounds.train_end_us),
            whole_hours.label_index(lo, hi, ahead, split.train_end_us),
        )
    assert len(np.unique(stretched.timestamp_us % (7 * 24 * HOUR_US))) == 1
    assert config.cadence_us == stretched.cadence_us


def test_ratios_of_gift_evals_protocol_are_means_over_seeds(tmp_path: Path) -> None:
    for seed, error in enumerate((0.8, 0.82)):
        path = gift_section.result_path(tmp_path, "short", seed)
        path.parent.mkdir()
        found = {"MASE": error, "naive MASE": 1.0, "CRPS": 0.3, "naive CRPS": 0.5, "seconds": 60}
        path.write_text(json.dumps(found))
    page = quality_report.written(tmp_path, RUNS, (0, 1, 2))
    assert "| short | 48 | 0.810 ± 0.014 | 0.600 ± 0.000 | ≤ .84, aim .80 | 60 s | 2 |" in page
    assert "| medium |" not in page


def test_a_command_that_fails_leaves_no_result(tmp_path: Path) -> None:
    result = tmp_path / "gift-short-seed0" / "gift.json"
    assert not Task(["python", "-c", "print('half'); raise SystemExit(1)"], result, prints_result=True).run()
    assert not result.exists()
    assert Task(["python", "-c", "print('{}')"], result, prints_result=True).run()
    assert result.read_text() == "{}\n"
