"""Checks that no forecast and no score depends on an outlook that came later, on data with made outlooks."""

from typing import Final

import numpy as np

from model.backtest import Leak, Predictor, assert_causal, backtest, model_predictor
from model.carrying_predictor import ForecastRequest
from model.forecaster import Forecaster
from model.sequences import Sequences
from pipeline.files.reading_table import ReadingTable
from pipeline.settings import Settings
from tests.benchmarks.made_outlooks import EVERY_STEPS, MadeOutlooks, joined

BESIDE_STEPS: Final = 480  # that are checked before and after the cut
WARM_UP_STEPS: Final = 48  # that are not scored


def check_revisions(
    forecaster: Forecaster, readings: ReadingTable, settings: Settings, made: MadeOutlooks, cut_us: int
) -> None:
    """Check that revised and additional outlooks from the cut on change no byte of the forecasts and scores before it.

    Raises:
        Leak: an earlier forecast or score changed.
        ValueError: no later forecast changed, so the check showed nothing.
    """
    config = forecaster.config
    beside_us = BESIDE_STEPS * config.cadence_us
    start_us, end_us = cut_us - beside_us, cut_us + beside_us
    revised = made.revised(cut_us, config.cadence_us, seed=1)
    parts = [joined(readings, settings, each).slice_time(start_us, end_us) for each in (made, revised)]
    scores, forecasts = [], []
    for part in parts:
        predictor = model_predictor(forecaster, adaptation=settings.adaptation)
        found = backtest(
            [predictor], part, config, start_us + WARM_UP_STEPS * config.cadence_us, cut_us + config.cadence_us
        )
        scores.append(b"".join(each.tobytes() for each in found[predictor.name].sums.values()))
        requests = [ForecastRequest(part.past(s, part.span(s)[1]), 0) for s in range(len(part.sensors))]
        predictor = model_predictor(forecaster, adaptation=settings.adaptation)
        forecasts.append(np.concatenate(predictor.forecasts_together(requests)))
    # The outlooks of the cut come after the readings of the cut. No forecast is issued at an inserted step.
    observed = parts[0].observed
    earlier, later = (observed & each for each in (parts[0].timestamp_us <= cut_us, parts[0].timestamp_us > cut_us))
    if scores[0] != scores[1] or forecasts[0][earlier].tobytes() != forecasts[1][earlier].tobytes():
        raise Leak(f"outlooks that came after {cut_us} µs changed earlier forecasts or scores")
    if (forecasts[0][later] == forecasts[1][later]).all():
        raise ValueError("the revised outlooks changed no forecast at all")


def check_leaks(
    forecaster: Forecaster, readings: ReadingTable, settings: Settings, made: MadeOutlooks, cut_us: int
) -> None:
    """Check that ``assert_causal`` accepts the outlooks, and catches the same outlooks some steps too early.

    Raises:
        Leak: the outlooks leak.
        ValueError: the outlooks that come too early are not caught.
    """
    config = forecaster.config

    def build(_: Sequences) -> Predictor:
        return model_predictor(forecaster, adaptation=settings.adaptation)

    early = MadeOutlooks(made.issued_us, made.issued_us - EVERY_STEPS * config.cadence_us, made.values)
    half_us = BESIDE_STEPS // 2 * config.cadence_us
    honest, leaking = (
        joined(readings, settings, each).slice_time(cut_us - half_us, cut_us + half_us) for each in (made, early)
    )
    assert_causal(build, honest, config, [cut_us])
    try:
        assert_causal(build, leaking, config, [cut_us])
    except Leak:
        return
    raise ValueError("outlooks that come too early were not caught")
