"""The fuzz target of outlooks: a record that is not a reading is an outlook within the limits, or is rejected."""

import json
import random
from typing import Final

import numpy as np

from pipeline.dead_letter_form import dead_letter
from pipeline.forecaster.readings import decode_records
from pipeline.kafka.record_batch import FetchedRecord
from pipeline.messages import (
    EARLIEST_TIMESTAMP_US,
    LARGEST_VALUE,
    LATEST_TIMESTAMP_US,
    InputPosition,
    ReadingDecoder,
    Rejected,
)
from pipeline.outlook_messages import Outlook, OutlookDecoder, decode_outlook, encode_outlook, make_outlook_decoder
from pipeline.settings import Settings
from pipeline.settings.outlooks import OutlookSettings
from tests.fuzz.mutation import mutate

FEATURES: Final = ("PM2.5", "TEMP")
COVARIATES: Final = ("TEMP", "é")
GROUP: Final = "stadt"
MEMBERS: Final = ("dach", "hafen")
SETTINGS: Final = Settings(
    features=FEATURES, targets=FEATURES[:1], outlooks=OutlookSettings(covariates=COVARIATES, groups={GROUP: MEMBERS})
)
LETTER_LIMIT: Final = 2_000

_NAMES: Final = ("dach", "é", "a" * 1_024, GROUP)
_TIMES: Final[tuple[list[object], ...]] = (
    ["2013-03-01T00:00:00Z"],
    ["2013-03-01T00:00:00.123456+05:30", 1_362_096_000_000, -2_208_988_800_000],
    ["2199-12-31T23:59:59.999999Z", "2013-03-01T00:00:00Z", "2013-03-01T00:00:00Z"],
)
_NUMBERS: Final = (4.0, None, -0.0, 1e30, -1e-300)
_DECODER = ReadingDecoder(FEATURES)
_OUTLOOK_DECODER = make_outlook_decoder(SETTINGS)


def _messages() -> list[bytes]:
    """Valid outlooks of each name, for one, two or all of the times and covariates."""
    chance = random.Random(0)
    found = []
    for name in _NAMES:
        for times in _TIMES:
            for covariates in (("TEMP",), COVARIATES, (*COVARIATES, "stranger")):
                values = {covariate: [chance.choice(_NUMBERS) for _ in times] for covariate in covariates}
                message = {
                    "group" if name == GROUP else "sensor_id": name,
                    "issued_at": times[0],
                    "outlook": {"timestamps": times, "values": values},
                }
                found.append(json.dumps(message, ensure_ascii=chance.random() < 0.5).encode())
    return found


_MESSAGES: Final = _messages()


# Each stands in a message that is JSON, so that it reaches the rules behind the form.
_ODD_TIMES: Final = (
    0,
    -(10**18),
    10**18,
    1.5,
    None,
    True,
    "2013-03-01",
    "2013-03-01T24:00:00Z",
    "1899-12-31T23:59:59Z",
)
_ODD_NUMBERS: Final[tuple[object, ...]] = (1e31, -1e308, "1.5", True, [], {})


def _make_odd(value: bytes, chance: random.Random) -> bytes:
    """Change one element of a message; it stays JSON."""
    message = json.loads(value)
    outlook = message["outlook"]
    times, (covariate, column) = outlook["timestamps"], chance.choice(list(outlook["values"].items()))
    match chance.randrange(8):
        case 0:
            message["issued_at"] = chance.choice(_ODD_TIMES)
        case 1:
            times[-1] = chance.choice(_ODD_TIMES)
        case 2:
            column[-1] = chance.choice(_ODD_NUMBERS)
        case 3:
            column.append(1.0)
        case 4:
            outlook["values"] = {"stranger": column}
        case 5:
            outlook["timestamps"] = []
        case 6:
            message["group"] = chance.choice((*_NAMES, "", 1, None))
        case 7:
            outlook["values"][covariate] = chance.choice(_ODD_NUMBERS)
    return json.dumps(message).encode()


def outlooks(chance: random.Random) -> None:
    """The decoder of the stream tells outlooks and rejected records apart, and an outlook survives its own form."""
    original = chance.choice(_MESSAGES)
    change = chance.choice((_make_odd, _make_odd, lambda value, chance: mutate(value, _MESSAGES, chance)))
    value = original if chance.random() < 0.05 else change(original, chance)
    content = json.loads(original)
    key: bytes | None = (content.get("sensor_id") or content["group"]).encode()
    if chance.random() < 0.2:
        key = chance.choice((None, b"", *(name.encode() for name in _NAMES), mutate(key or b"", _MESSAGES, chance)))
    record = FetchedRecord(key, value, 7, [])
    together = decode_records(_DECODER, len(FEATURES), 0, [record], (), _OUTLOOK_DECODER)
    try:
        _DECODER.decode(key, value)
    except Rejected as rejected:
        found = decode_outlook(_OUTLOOK_DECODER, record, rejected)
    else:  # a mutation may hide the outlook among the fields that a reading ignores
        assert len(together.readings) == 1
        assert not together.readings.outlooks
        return
    assert not len(together.readings)
    if isinstance(found, Rejected):
        assert value != original or key != content.get("sensor_id", GROUP).encode()
        assert [why.reason for _, why in together.rejected] == [found.reason]
        _check_rejected(found, key, value)
        return
    assert not together.rejected
    assert [each.offset for each in together.readings.outlooks] == [7]
    _check_outlook(found, key)


def _check_rejected(rejected: Rejected, key: bytes | None, value: bytes) -> None:
    assert rejected.reason in {*OutlookDecoder.REASONS, *ReadingDecoder.REASONS}
    letter = dead_letter(key, value, [], rejected, InputPosition("readings", 0, 7), LETTER_LIMIT)
    assert len(letter.key or b"") + len(letter.value or b"") <= LETTER_LIMIT
    assert (dict(letter.headers)["streamgru-detail"] or b"").decode()


def _check_outlook(outlook: Outlook, key: bytes | None) -> None:
    assert outlook.name.encode() == key
    assert outlook.sensors == (MEMBERS if outlook.is_group else (outlook.name,))
    assert outlook.values.shape == (len(outlook.timestamp_us), len(COVARIATES))
    assert len(outlook.timestamp_us)
    assert outlook.ignored >= 0
    for timestamp_us in (outlook.issued_us, *outlook.timestamp_us.tolist()):
        assert EARLIEST_TIMESTAMP_US <= timestamp_us < LATEST_TIMESTAMP_US
    known = outlook.values[~np.isnan(outlook.values)]
    assert (np.abs(known) <= np.float32(LARGEST_VALUE)).all()
    # The nearest float32 of the largest value is beyond it.
    given = np.clip(outlook.values.astype(np.float64), -LARGEST_VALUE, LARGEST_VALUE)
    columns = dict(zip(COVARIATES, given.T, strict=True))
    again = FetchedRecord(
        *encode_outlook(outlook.name, outlook.issued_us, outlook.timestamp_us, columns, is_group=outlook.is_group),
        7,
        [],
    )
    decoded = decode_outlook(_OUTLOOK_DECODER, again, Rejected("malformed"))
    assert isinstance(decoded, Outlook)
    assert decoded.issued_us == outlook.issued_us
    np.testing.assert_array_equal(decoded.timestamp_us, outlook.timestamp_us)
    np.testing.assert_array_equal(decoded.values, outlook.values)
