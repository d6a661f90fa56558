"""Reads the last state of every sensor from the changelog, and compares states with recomputed ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StateError
from pipeline.forecaster.positions import POSITION_KEY
from pipeline.kafka.topic_reader import read_topic
from pipeline.messages import decode_state
from pipeline.settings import Settings


@dataclass(frozen=True)
class LastState:
    """A sensor's last record on the state topic; ``fault`` says why it cannot be used, or is None."""

    version: int = -1
    row: bytes = b""
    fault: str | None = None


def read_states(settings: Settings) -> dict[tuple[int, str], LastState]:
    """The last state by partition and sensor; a sensor whose record was deleted is absent.

    Raises:
        KafkaError: no broker answers, the topic is missing, or the records stop coming.
    """
    values: dict[tuple[int, bytes], bytes | None] = {}
    for record in read_topic(settings, settings.kafka.topics.state, {}, None):
        if record.key != POSITION_KEY:
            values[record.partition, record.key or b""] = record.value
    present = settings.fingerprint  # computed once: it is a hash of all settings that shape a forecast
    return {
        (partition, key.decode(errors="replace")): _decode(value, present)
        for (partition, key), value in values.items()
        if value is not None
    }


def _decode(value: bytes, fingerprint: str) -> LastState:
    """The state in a record; a fault if the record is damaged or has another fingerprint of the settings."""
    try:
        tag, row = decode_state(value)
    except StateError as error:
        return LastState(fault=str(error))
    if tag.settings != fingerprint:
        return LastState(fault=f"the record was made under settings {tag.settings}, not {fingerprint}")
    return LastState(tag.model_version, row)


def state_differences(found: np.void, expected: np.void, tolerance: float) -> list[str]:
    """The fields that differ between two states of one dtype. Integers must be equal, floats within the tolerance.

    Fields within a field have names such as ``adaptation.losses``.

    Args:
        tolerance: largest difference in a float field, as a fraction of its largest number, or of 1 if that is larger.
    """
    if found.tobytes() == expected.tobytes():
        return []
    return list(_differences(found, expected, tolerance))


def _differences(found: Any, expected: Any, tolerance: float, within: str = "") -> Iterator[str]:
    for name in found.dtype.names:
        a, b = found[name], expected[name]
        if a.dtype.names is not None:
            yield from _differences(a, b, tolerance, f"{within}{name}.")
        elif not _is_same(a, b, tolerance):
            yield within + name


def _is_same(found: NDArray[Any], expected: NDArray[Any], tolerance: float) -> bool:
    if found.dtype.kind != "f":
        return bool(np.array_equal(found, expected))
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=1.0)
    return bool(np.allclose(found, expected, rtol=0.0, atol=tolerance * largest, equal_nan=True))
