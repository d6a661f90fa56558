"""The fuzz targets. Each takes a seeded ``Random``; an ``AssertionError`` or any other exception is a finding."""

import json
import random
from collections.abc import Callable

import msgspec
import numpy as np

from model.state import non_finite
from pipeline.dead_letter_form import dead_letter
from pipeline.errors import StateError
from pipeline.forecaster.positions import CommittedPosition, PartitionLog, Position
from pipeline.forecaster.readings import decode_records
from pipeline.forecaster.states.records import StateRecords
from pipeline.forecaster.states.store import ServedModel
from pipeline.kafka.record_batch import FetchedRecord
from pipeline.messages import (
    EARLIEST_TIMESTAMP_US,
    LARGEST_VALUE,
    LATEST_TIMESTAMP_US,
    InputPosition,
    Reading,
    ReadingDecoder,
    Rejected,
    StateTag,
    decode_state,
    encode_reading,
)
from pipeline.readings_format.decoder import OwnFormDecoder
from pipeline.settings import Settings
from tests.columns import content, in_columns
from tests.fuzz.batches import batches
from tests.fuzz.files import files
from tests.fuzz.forecasts import forecasts
from tests.fuzz.mapped import mapped
from tests.fuzz.mutation import mutate
from tests.fuzz.outlooks import outlooks
from tests.fuzz.settings import settings
from tests.fuzz.times import file_times
from tests.hostile_reports import REPORTS, Values, check
from tests.integration.stream_rig import small_forecaster

FEATURES = ("PM2.5", "TEMP", "é")
SETTINGS = Settings(features=FEATURES, targets=("PM2.5",), horizon_steps=3, max_gap_steps=5)
LETTER_LIMIT = 2_000

Target = Callable[[random.Random], None]


# --- readings ---------------------------------------------------------------------------------------------------------

_KEYS = (b"aotizhongxin", "é".encode(), b"a" * 1_024, b'quoted "id"', b"\xf0\x9f\x8c\xa1")
_TIMES: tuple[object, ...] = (
    "2013-03-01T00:00:00Z",
    "2013-03-01T00:00:00.123456+05:30",
    1_362_096_000_000,
    -2_208_988_800_000,
    "2199-12-31T23:59:59.999999Z",
)
_VALUES: tuple[dict[str, object], ...] = (
    {"PM2.5": 4.0, "TEMP": -0.7, "é": None},
    {"PM2.5": 1e30, "stranger": 1},
    {"TEMP": -1e-300, "a": 0, "b": -0.0},
    dict.fromkeys((*FEATURES, *map(str, range(40))), 1.5),
)
_READINGS = [
    json.dumps({"sensor_id": key.decode(), "timestamp": time, "values": values}, ensure_ascii=ascii_only).encode()
    for key in _KEYS
    for time in _TIMES
    for values in _VALUES
    for ascii_only in (True, False)
]
_DECODER = OwnFormDecoder(FEATURES)


def decoder(chance: random.Random) -> None:
    """Any bytes decode to a reading within the limits, or are rejected with a reason and a dead letter."""
    value: bytes | None = mutate(chance.choice(_READINGS), _READINGS, chance)
    key: bytes | None = chance.choice(_KEYS)
    if chance.random() < 0.3:
        key = chance.choice((None, b"", mutate(chance.choice(_KEYS), _KEYS, chance)))
    if chance.random() < 0.01:
        value = None
    record = FetchedRecord(key, value, 7, [])
    together = decode_records(_DECODER, len(FEATURES), 0, [record])
    columns = decode_records(_DECODER, len(FEATURES), 0, in_columns([record]))
    assert content(columns) == content(together), "columns differ from records decoded one by one"
    try:
        reading = _DECODER.decode(key, value)
    except Rejected as rejected:
        assert len(together.rejected) == 1
        assert not len(together.readings)
        _check_rejected(rejected, key, value)
        return
    assert len(together.readings) == 1
    assert not together.rejected
    _check_reading(reading, key)


def _check_rejected(rejected: Rejected, key: bytes | None, value: bytes | None) -> None:
    assert rejected.reason in ReadingDecoder.REASONS
    letter = dead_letter(key, value, [], rejected, InputPosition("readings", 0, 7), LETTER_LIMIT)
    assert len(letter.key or b"") + len(letter.value or b"") <= LETTER_LIMIT
    assert (dict(letter.headers)["streamgru-detail"] or b"").decode()


def _check_reading(reading: Reading, key: bytes | None) -> None:
    assert reading.sensor_id.encode() == key
    assert EARLIEST_TIMESTAMP_US <= reading.timestamp_us < LATEST_TIMESTAMP_US
    assert len(reading.values) == len(FEATURES)
    known = [value for value in reading.values if value == value]
    assert known
    assert all(-LARGEST_VALUE <= value <= LARGEST_VALUE for value in known)
    assert reading.ignored >= 0
    again = _DECODER.decode(
        *encode_reading(reading.sensor_id, reading.timestamp_us, dict(zip(FEATURES, reading.values, strict=True)))
    )
    assert again.timestamp_us == reading.timestamp_us
    np.testing.assert_array_equal(again.values, reading.values)


# --- states -----------------------------------------------------------------------------------------------------------

_FORECASTER = small_forecaster(SETTINGS, hidden_size=4)
_DTYPE = ServedModel(1, _FORECASTER, SETTINGS).table.dtype
_TAG = StateTag(1, SETTINGS.fingerprint)


def _states() -> list[bytes]:
    generator = np.random.default_rng(0)
    found = []
    for number in range(8):
        state = np.zeros(1, _DTYPE)
        state["offset"] = number
        state["hidden"] = generator.normal(size=state["hidden"].shape)
        found.append(_TAG.encode(state.tobytes()))
    return found


_STATES = _states()


def state_codec(chance: random.Random) -> None:
    """Any bytes raise ``StateError``, or decode to a state whose row was not changed."""
    original = chance.choice(_STATES)
    value = mutate(original, _STATES, chance)
    try:
        tag, row = decode_state(value)
    except StateError:
        return
    assert tag.encode(row) == value
    if tag == _TAG:
        assert any(row == decode_state(good)[1] for good in _STATES), "a damaged row was decoded without an error"


def restore(chance: random.Random) -> None:
    """A changelog with broken records restores the intact states, and lists every other sensor for a rebuild."""
    serving = ServedModel(1, _FORECASTER, SETTINGS)
    serving.table.add_partition(0)
    found = StateRecords(serving, {0: PartitionLog(0, 0, 100, CommittedPosition(Position(100)))}, SETTINGS, "", {})
    records, latest = [], {}
    for number in range(chance.randrange(1, 12)):
        key = b"s%d" % chance.randrange(5)
        value: bytes | None = chance.choice(_STATES)
        if chance.random() < 0.5:
            value = chance.choice((None, b"", mutate(chance.choice(_STATES), _STATES, chance)))
        if chance.random() < 0.1:
            tag, row = decode_state(chance.choice(_STATES))
            state = np.frombuffer(row, _DTYPE).copy()
            state["hidden"].flat[0] = chance.choice((np.nan, np.inf))
            value = chance.choice((tag, msgspec.structs.replace(tag, model_version=9))).encode(state.tobytes())
        records.append(FetchedRecord(key, value, number, []))
        latest[key.decode()] = value
    found.add(0, records)
    sensors, rows = serving.table.partition_rows(0)
    assert not non_finite(serving.table.gather(rows)).any()
    states = dict(zip(sensors, serving.table.gather(rows), strict=True))
    for sensor, value in latest.items():
        is_intact = value in _STATES
        assert (sensor in found.unusable[0]) != is_intact
        if is_intact:
            assert value is not None
            assert states[sensor].tobytes() == decode_state(value)[1]


# --- steps ------------------------------------------------------------------------------------------------------------

_ABSURD = (
    *(0.0, -0.0, 1e30, -1e30, 1e-300, -5e-324, 1.0, 3.14, 1e9, -1e15, float("nan")),
    *(1e-310, -1e-170, 1e-162, 1e-160, -1e-155, 1e-150, 1e-100),  # their squares are denormal, 0 or nearly so
)


def steps(chance: random.Random) -> None:
    """States and forecasts stay finite after any accepted readings, and forecasts do not depend on the batches."""
    serving, single = ServedModel(1, _FORECASTER, SETTINGS), ServedModel(1, _FORECASTER, SETTINGS)
    for one in (serving, single):
        one.table.add_partition(0)
    moment = chance.randrange(EARLIEST_TIMESTAMP_US, LATEST_TIMESTAMP_US)
    records = []
    for offset in range(chance.randrange(1, 12)):
        moment += chance.choice((-HOUR_US, 0, 1, HOUR_US, HOUR_US, HOUR_US, 3 * HOUR_US, 10**6 * HOUR_US))
        moment = min(max(moment, EARLIEST_TIMESTAMP_US), LATEST_TIMESTAMP_US - 1)
        values = {name: chance.choice(_ABSURD) for name in FEATURES}
        key, value = encode_reading(chance.choice("ab"), moment, values)
        records.append(FetchedRecord(key, value, offset, []))
    readings = decode_records(_DECODER, len(FEATURES), 0, records).readings
    accepted = serving.classify(readings).accepted
    if not len(accepted):
        return
    stepped = serving.step([accepted])
    assert not len(stepped.non_finite), "an accepted reading made a state non-finite"
    found = []
    for number in range(len(accepted)):
        mask = np.arange(len(accepted)) == number
        alone = single.step([accepted.take(mask)])
        single.table.scatter(alone.rows, alone.states)
        found.append(alone.forecasts.quantiles[0])
    np.testing.assert_array_equal(np.stack(found), stepped.forecasts.quantiles)


HOUR_US = 3_600_000_000


# --- reports ----------------------------------------------------------------------------------------------------------


def reports(chance: random.Random) -> None:
    """A report of any non-zero counters and any text is rendered, harmless to terminals, and its JSON is valid."""
    name = chance.choice(tuple(REPORTS))
    check(name, REPORTS[name](Values(chance)))


TARGETS: dict[str, Target] = {
    "decoder": decoder,
    "mapped": mapped,
    "outlooks": outlooks,
    "state-codec": state_codec,
    "restore": restore,
    "steps": steps,
    "forecasts": forecasts,
    "batches": batches,
    "settings": settings,
    "files": files,
    "file-times": file_times,
    "reports": reports,
}
