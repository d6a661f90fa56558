"""Fills the answers from a ``LiveView``. Every function locks the view for as long as it copies numbers."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from deploy.serve import answers
from pipeline.dead_letter_form import DeadLetter
from pipeline.live.events import Swap
from pipeline.live.forecast_head import ForecastHead
from pipeline.live.index import Indexed
from pipeline.live.rates import STEP_S
from pipeline.live.scores import ScoreSums
from pipeline.live.sensor_history import SensorHistory
from pipeline.live.view import LiveView
from pipeline.messages import iso_timestamp
from pipeline.settings import Settings


@dataclass(frozen=True)
class ListQuery:
    """Which page of the sensor list."""

    search: str
    sort: str
    descending: bool
    offset: int
    limit: int


def number(value: Any) -> float | None:
    """A number for JSON: None for NaN and infinity. Float32 is written with its own digits, not those of float64."""
    found = float(value)
    if not math.isfinite(found):
        return None
    return float(str(value)) if isinstance(value, np.float32) else found


def now_ms() -> int:
    """The time of day."""
    return round(time.time() * 1_000)


def about(settings: Settings, view: LiveView) -> answers.About:
    """See ``answers.About``."""
    topics = settings.kafka.topics
    mlflow = settings.mlflow_tracking_uri.rstrip("/")
    return answers.About(
        version=version("streamgru"),
        model_name=settings.model_name,
        features=list(settings.features),
        targets=list(settings.targets),
        scored_targets=list(view.targets),
        quantiles=list(settings.quantiles),
        cadence_s=settings.cadence_s,
        horizon_steps=settings.horizon_steps,
        settings=settings.fingerprint,
        topics=answers.Topics(topics.readings, topics.forecasts, topics.dead_letters),
        partitions=view.partitions,
        now_ms=now_ms(),
        started_ms=round(view.started_s * 1_000),
        links=answers.Links(
            f"{mlflow}/#/models/{settings.model_name}" if mlflow.startswith("http") else "",
            settings.prefect_api_url.rstrip("/").removesuffix("/api") + "/deployments",
        ),
    )


def status(view: LiveView, clients: int) -> answers.Status:
    """See ``answers.Status``."""
    now_s = time.time()
    with view.locked():
        readings_per_s, forecasts_per_s = view.rates.rates(now_s)
        delays = view.rates.delays(now_s)
        lag = view.log.lag
        since_ms, catch_up = view.stale_since_ms, view.catch_up
        return answers.Status(
            now_ms=round(now_s * 1_000),
            stale=since_ms is not None,
            stale_since_ms=since_ms,
            broker_seen_ms=view.broker_seen_ms,
            trouble=view.trouble,
            catching_up=None if catch_up is None else answers.Progress(catch_up.done, catch_up.total),
            sensors=len(view.index.rows),
            readings=view.readings,
            forecasts=view.forecasts,
            readings_per_s=readings_per_s,
            forecasts_per_s=forecasts_per_s,
            lag=sum(lag.values()) if lag else None,
            delay_p50_ms=delays.quantile_ms(0.5),
            delay_p99_ms=delays.quantile_ms(0.99),
            events_clients=clients,
            dead_letters=view.letters_by_reason.total(),
            champion=None if view.champion is None else view.champion[0],
            swaps=view.swaps_seen,
            list_version=view.list_version,
        )


def partitions(view: LiveView) -> answers.Partitions:
    """See ``answers.Partitions``."""
    with view.locked():
        log, lag = view.log, view.log.lag
        numbers = sorted({*log.readings_end, *log.forecasts_end, *log.seen, *log.committed})
        found = [
            answers.Partition(
                one,
                log.readings_end.get(one),
                log.committed.get(one),
                lag.get(one),
                log.forecasts_end.get(one),
                log.seen.get(one),
            )
            for one in numbers
        ]
    return answers.Partitions(now_ms(), found)


def rates(view: LiveView) -> answers.Rates:
    """See ``answers.Rates``."""
    with view.locked():
        steps = view.rates.finished(time.time())
    return answers.Rates(
        step_s=STEP_S,
        time_ms=[round(step.begin_s * 1_000) for step in steps],
        readings=[step.readings for step in steps],
        forecasts=[step.forecasts for step in steps],
        delay_p50_ms=[step.delays.quantile_ms(0.5) for step in steps],
        delay_p99_ms=[step.delays.quantile_ms(0.99) for step in steps],
        lag=[step.lag for step in steps],
    )


def swap(seen: Swap) -> answers.SwapSeen:
    """See ``answers.SwapSeen``."""
    return answers.SwapSeen(seen.at_ms, seen.partition, seen.offset, seen.from_version, seen.to_version)


def letter(seen: DeadLetter) -> answers.Letter:
    """See ``answers.Letter``."""
    return answers.Letter(
        at_ms=seen.set_aside_ms,
        reason=seen.reason,
        detail=seen.detail,
        key=None if seen.key is None else seen.key.decode(errors="replace"),
        partition=seen.at_partition,
        offset=seen.at_offset,
        input_partition=seen.partition,
        input_offset=seen.offset,
    )


def dead_letters(view: LiveView) -> answers.DeadLetters:
    """See ``answers.DeadLetters``."""
    with view.locked():
        by_reason, latest = dict(view.letters_by_reason), list(view.letters)
    return answers.DeadLetters(by_reason, sum(by_reason.values()), list(map(letter, latest)))


def scores(settings: Settings, view: LiveView) -> answers.Scores:
    """See ``answers.Scores``."""
    low, high = settings.quantiles[0], settings.quantiles[-1]
    with view.locked():
        total, buckets = view.scores.total, list(view.scores.buckets)
        targets = [
            answers.TargetScores(
                target=name,
                low=low,
                high=high,
                expected_coverage=round(high - low, 9),
                count=int(total.judged[place]),
                coverage=total.coverage(place),
                mae=total.mae(place),
                persistence_mae=total.persistence_mae(place),
                series=_buckets(buckets, place),
            )
            for place, name in enumerate(view.targets)
        ]
    since = iso_timestamp(round(view.started_s) * 1_000_000)
    return answers.Scores(
        worked_out_by=f"this process, from the forecasts that it has seen since {since} and in its look back",
        since_ms=round(view.started_s * 1_000),
        step=1,
        targets=targets,
    )


def _buckets(buckets: Sequence[tuple[float, ScoreSums]], place: int) -> answers.ScoreBuckets:
    return answers.ScoreBuckets(
        time_ms=[round(begin_s * 1_000) for begin_s, _ in buckets],
        count=[int(sums.judged[place]) for _, sums in buckets],
        coverage=[sums.coverage(place) for _, sums in buckets],
        mae=[sums.mae(place) for _, sums in buckets],
        persistence_mae=[sums.persistence_mae(place) for _, sums in buckets],
    )


# --- sensors ----------------------------------------------------------------------------------------------------------


def sensors(view: LiveView, query: ListQuery) -> answers.Sensors:
    """A page of the sensors whose ids contain the text; equal and unknown values are in order of the ids."""
    with view.locked():
        table = view.index.sensors
        ids, all_ranks = table.copy_ids(), table.ranks
    if len(all_ranks) < len(ids.starts) - 1:
        all_ranks = ids.ranks()
        with view.locked():
            table.ranks = all_ranks
    found = ids.search(query.search.encode(errors="surrogateescape"))
    with view.locked():
        found = found[found < len(view.index.rows)]
        keys = _keys(view.index.rows, found, query)
        list_version = view.list_version
    ranks = all_ranks[found]
    order = np.lexsort((ranks, keys)) if query.sort != "name" else np.argsort(-ranks if query.descending else ranks)
    chosen = found[order[query.offset : query.offset + query.limit]]
    with view.locked():
        rows = [_row(view, int(row)) for row in chosen]
    return answers.Sensors(len(found), query.offset, list_version, rows)


def _keys(rows: NDArray[Any], found: NDArray[np.int64], query: ListQuery) -> NDArray[np.float64]:
    """(n,) keys in ascending order; NaN, which sorts last, for unknown values."""
    if query.sort == "latest":
        keys = rows["arrived_ms"][found].astype(np.float64)
    elif query.sort == "error":
        with np.errstate(divide="ignore", invalid="ignore"):
            keys = (rows["error"][found] / rows["persistence_error"][found]).astype(np.float64)
    else:
        keys = rows["surprise"][found].astype(np.float64)
    return -keys if query.descending else keys


def sensor(view: LiveView, name: str) -> answers.SensorRow | None:
    """The row of a sensor; None for an unknown one."""
    with view.locked():
        row = view.index.sensors.find(name.encode(errors="surrogateescape"))
        return None if row is None else _row(view, row)


def _row(view: LiveView, place: int) -> answers.SensorRow:
    row = view.index.rows[place]
    surprise = number(row["surprise"])
    target = int(row["target"])
    ratio = row["error"] / row["persistence_error"] if row["persistence_error"] else math.nan
    return answers.SensorRow(
        sensor=view.index.sensors.id_of(place).decode(errors="replace"),
        partition=int(row["partition"]),
        offset=int(row["offset"]),
        issued_at_ms=int(row["issued_at_us"]) // 1_000,
        arrived_ms=int(row["arrived_ms"]),
        model=int(row["model"]),
        warm=bool(row["warm"]),
        surprise=surprise,
        target=view.targets[target],
        value=number(row["value"][target]),
        low=number(row["low"]),
        median=number(row["median"]),
        high=number(row["high"]),
        delay_ms=number(row["delay_ms"]),
        count=int(row["count"]),
        error_ratio=number(ratio),
    )


def event_row(view: LiveView, head: ForecastHead, indexed: Indexed | None, place: int) -> answers.EventRow:
    """A forecast in an event; ``indexed`` is None in a replay."""
    row = answers.EventRow(
        sensor=head.sensor.decode(errors="replace"),
        partition=head.partition,
        offset=head.offset,
        issued_at_ms=head.issued_at_us // 1_000,
        sent_ms=None,
        model=head.model,
        warm=head.warm,
        input_partition=head.reading_partition,
        input_offset=head.reading_offset,
        surprise=None,
        target=None,
        value=None,
        low=None,
        median=None,
        high=None,
        delay_ms=None,
    )
    if indexed is not None:
        sent_ms = int(indexed.reading_sent_ms[place])
        row.sent_ms = None if sent_ms < 0 else sent_ms
        row.surprise, row.target = number(indexed.surprise[place]), view.targets[int(indexed.target[place])]
        row.value, row.low = number(indexed.value[place]), number(indexed.low[place])
        row.median, row.high = number(indexed.median[place]), number(indexed.high[place])
        row.delay_ms = number(indexed.delay_ms[place])
    return row


# --- one sensor's history ---------------------------------------------------------------------------------------------


def history(sensor_id: str, found: SensorHistory, count: int, steps: Sequence[int], whole: int) -> answers.History:
    """The last ``count`` readings, the forecasts made ``steps`` before them, and ``whole`` forecasts in full."""
    settings = found.settings
    first = max(0, len(found) - count)
    made_before = {}
    for step in steps:
        made = found.made_before(step)[first:]
        made_before[str(step)] = {
            target: answers.Interval(*(list(map(number, made[:, place, which])) for which in range(3)))
            for place, target in enumerate(settings.targets)
        }
    return answers.History(
        sensor=sensor_id,
        time_ms=(found.issued_at_us[first:] // 1_000).tolist(),
        values={name: list(map(number, found.values[first:, at])) for at, name in enumerate(settings.features)},
        models=[forecast.model.version for forecast in found.forecasts[first:]],
        made_before=made_before,
        forecasts=[msgspec.Raw(record.value or b"null") for record in found.records[len(found) - whole :]]
        if whole
        else [],
        complete=len(found) - first >= count,
        why=""
        if len(found) - first >= count
        else f"this process can locate {len(found):,} forecasts of the sensor: those since its look back, and as many "
        "as serve.history_records allows",
    )


def sensor_scores(sensor_id: str, found: SensorHistory) -> answers.SensorScores:
    """The scores of a history by target and step."""
    settings, sums = found.settings, found.scores()
    low, high = settings.quantiles[0], settings.quantiles[-1]
    times = (found.issued_at_us // 1_000).tolist()
    return answers.SensorScores(
        worked_out_by=f"this process, from the latest {len(found)} forecasts of the sensor",
        sensor=sensor_id,
        first_ms=times[0] if times else None,
        last_ms=times[-1] if times else None,
        targets=[
            answers.TargetStepScores(
                target=target,
                low=low,
                high=high,
                expected_coverage=round(high - low, 9),
                steps=[
                    answers.StepScores(
                        step, int(of.judged[place]), of.coverage(place), of.mae(place), of.persistence_mae(place)
                    )
                    for step, of in sums.items()
                    if of.judged[place]
                ],
            )
            for place, target in enumerate(settings.targets)
        ],
    )
