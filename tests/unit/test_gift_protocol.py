"""The benchmark has the windows and scores of GIFT-Eval's protocol, and runs on a small file."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import gift_protocol
from tests.benchmarks.gift_protocol import LEVELS, Score, seasonal_naive, window_starts


@pytest.mark.parametrize(
    ("shortest", "horizon", "count"),
    [(17_420, 48, 20), (17_420, 480, 4), (17_420, 720, 3), (500, 48, 2), (150, 48, 1)],
)
def test_windows_are_the_last_tenth_but_at_most_twenty(shortest: int, horizon: int, count: int) -> None:
    starts = window_starts(shortest, horizon)
    assert len(starts) == count
    assert starts[-1] + horizon == shortest
    assert set(np.diff(starts)) <= {horizon}


def test_a_file_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="90 steps are too few: the test part takes 48 of them"):
        window_starts(90, 48)


def test_the_naive_forecast_repeats_the_last_season_and_has_the_scores_of_the_protocol() -> None:
    past = np.arange(48.0)
    quantiles = seasonal_naive(past, 60)
    assert quantiles.shape == (len(LEVELS), 60)
    assert quantiles[0].tolist() == [*range(24, 48), *range(24, 48), *range(24, 36)]
    labels = quantiles[0] + 3.0
    score = Score()
    score.add("a", labels, quantiles, seasonal_error=24.0)
    assert score.mase == pytest.approx(3.0 / 24.0)
    assert score.crps == pytest.approx(60 * 3.0 / labels.sum())


def test_the_program_prints_scores_of_a_trained_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hours = np.datetime64("2020-01-01T00", "h") + np.arange(400)
    day = 10.0 + np.sin(np.arange(400) * 2.0 * np.pi / 24.0) + np.arange(400) / 100.0
    rows = [
        f"{hour},{value:.4f},{2 * value:.4f}" for hour, value in zip(hours.astype("datetime64[s]"), day, strict=True)
    ]
    path = tmp_path / "hours.csv"
    path.write_text("\n".join(["date,a,b", *rows]) + "\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["gift_protocol", str(path), "short", "--budget", "0.1", "--hidden", "8"])
    gift_protocol.main()
    found = json.loads(capsys.readouterr().out)
    assert (found["file"], found["term"], found["windows"]) == ("hours.csv", "short", 1)
    assert found["MASE by sensor"].keys() == {"a", "b"}
    assert all(np.isfinite(found[name]) for name in ("MASE", "CRPS", "naive MASE", "naive CRPS"))
