"""The streams of the golden files: settings, model and readings of each case, with gaps, duplicates and rejects."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import torch

from model.config import ModelConfig, Preset
from model.forecaster import Forecaster
from pipeline.settings import Settings
from tests.integration.stream_rig import Message

HOUR_MS: Final = 3_600_000
START_MS: Final = 1_700_000_000_000 // HOUR_MS * HOUR_MS
LIMIT_BYTES: Final = 1_000  # kafka.max_reading_bytes: the smallest allowed, which keeps the oversized record small
# Sensor id -> partition. The second id is not ASCII. The third sensor begins at step 20.
SENSORS: Final = {"aotizhongxin": 0, "süd-1": 1, "late": 0}
RESTART: Final = 30  # the first step of "after"
END: Final = 37
KNOWN: Final = ("aotizhongxin",)  # sensors with an embedding in the model

_PRESETS: Final[dict[str, Preset]] = {"off": "stateful", "light": "stateful", "full": "plain"}
_SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "off": {
        "features": ["a", "b"],
        "targets": ["b"],
        "horizon_steps": 3,
        "max_gap_steps": 6,
        "forecaster": {"adaptation": "off", "calibration": False},
    },
    # Defaults with a reorder buffer, which holds readings when the stream is stopped.
    "light": {"features": ["a"], "targets": ["a"], "horizon_steps": 3, "max_gap_steps": 6, "grace_steps": 3.0},
    "full": {
        "features": ["a", "b"],
        "targets": ["a", "b"],
        "horizon_steps": 2,
        "quantiles": [0.05, 0.5, 0.95],
        "max_gap_steps": 6,
        "cadence_s": 1800.0,
        "forecaster": {"adaptation": "full"},
    },
}


def chosen_settings(case: str) -> dict[str, Any]:
    """The settings of a case that differ from the defaults, as JSON values."""
    chosen = dict(_SETTINGS[case])
    name = f"compatibility-{case}"
    chosen["model_name"] = name
    chosen["kafka"] = {
        "topics": {
            "readings": f"{name}-readings",
            "forecasts": f"{name}-forecasts",
            "state": f"{name}-state",
            "dead_letters": f"{name}-readings.dlq",
        },
        "partitions": 2,
        "max_reading_bytes": LIMIT_BYTES,
    }
    chosen["forecaster"] = {**chosen.get("forecaster", {}), "group_id": name}
    return chosen


def model_of(case: str, settings: Settings) -> Forecaster:
    """A small model with random weights."""
    torch.manual_seed(1)
    config = ModelConfig(
        features=settings.features,
        targets=settings.targets,
        cadence_us=settings.cadence_us,
        horizon_steps=settings.horizon_steps,
        quantiles=settings.quantiles,
        max_gap_steps=settings.max_gap_steps,
        season_steps=6,
        hidden_size=4,
        warmup_steps=10,
        preset=_PRESETS[case],
        sensors=KNOWN,
        embedding_size=2,
        lag_steps=6,
        profile_slots=6,
    )
    forecaster = Forecaster(config)
    with torch.no_grad():
        for parameter in forecaster.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # makes forecasts depend on the state
    return forecaster.eval()


def messages(settings: Settings, part: str) -> Iterator[Message]:
    """The records of the readings topic in one part, "before" or "after"."""
    steps = range(RESTART) if part == "before" else range(RESTART, END)
    for step in steps:
        for sensor in SENSORS:
            yield from _of_step(settings, sensor, step)
        if step in (3, RESTART + 3):
            yield from _rejects(settings)


def _of_step(settings: Settings, sensor: str, step: int) -> Iterator[Message]:
    if sensor == "late" and step < 20:
        return
    if sensor == "süd-1":
        if step in (10, 11, 33) or 16 <= step < 26:  # gaps: short ones are stepped, the long one resets the state
            return
        yield _reading(settings, sensor, step)
        return
    if sensor == "aotizhongxin":
        # Two pairs of readings are swapped. The second pair spans the restart, so its first reading is buffered then.
        step = {12: 13, 13: 12, RESTART - 1: RESTART, RESTART: RESTART - 1}.get(step, step)
        yield _reading(settings, sensor, step)
        if step in (9, RESTART + 2):
            yield _reading(settings, sensor, step)  # a duplicate
        return
    yield _reading(settings, sensor, step)


def _reading(settings: Settings, sensor: str, step: int) -> Message:
    moment_ms = START_MS + step * round(settings.cadence_s * 1_000) + (90_000 if step % 4 == 1 else 0)
    values: dict[str, Any] = {
        feature: round(10 * place + (step * 7 + len(sensor)) % 6 + step / 8, 3)
        for place, feature in enumerate(settings.features)
    }
    if step % 5 == 2 and len(values) > 1:
        values[settings.features[0]] = None
    if step % 7 == 3:
        values["ignored"] = step
    text: Any = moment_ms if step % 3 == 1 else _iso(moment_ms)
    value = json.dumps({"sensor_id": sensor, "timestamp": text, "values": values}, ensure_ascii=False)
    headers = (("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-%02x" % step),)
    return Message(sensor.encode(), value.encode(), SENSORS[sensor], headers if step % 6 == 5 else ())


def _rejects(settings: Settings) -> Iterator[Message]:
    """Records that become dead letters, one per reason, and one that is too large to be kept whole."""
    feature = settings.features[0]
    good = {"sensor_id": "x", "timestamp": "2024-01-01T00:00:00Z", "values": {feature: 1.0}}
    text = json.dumps(good).encode()
    yield Message(b"x", None, 0)
    yield Message(b"x", b"\x00rubbish\xff", 0, (("origin", b"gateway \xff"),))
    yield Message(None, text, 0)
    yield Message(b"x", json.dumps({**good, "timestamp": "0024-01-01T00:00:00Z"}).encode(), 1)
    yield Message(b"x", json.dumps({**good, "values": {feature: 1e31}}).encode(), 1)
    yield Message(b"x", json.dumps({**good, "values": {feature: None}}).encode(), 1)
    yield Message(b"x", b"{" + b" " * 3 * LIMIT_BYTES, 1)


def _iso(moment_ms: int) -> str:
    return datetime.fromtimestamp(moment_ms / 1_000, UTC).isoformat().replace("+00:00", "Z")
