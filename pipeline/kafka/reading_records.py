"""Decodes fetched records of the readings topic into columns: usual records in compiled code, the rest one by one."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.kafka.record_batch import FetchedRecord
from pipeline.kafka.record_columns import RecordColumns
from pipeline.kafka.sensor_codes import by_appearance, distinct, join_names
from pipeline.messages import Reading, Rejected
from pipeline.readings_format.decoder import OwnFormDecoder, RecordDecoder


class DecodedReadings(NamedTuple):
    """The n readings in some records, in their order, and the other records."""

    names: list[str]  # the sensors, each once, by first appearance
    codes: NDArray[np.intp]  # (n,) index of the reading's sensor in ``names``
    timestamp_us: NDArray[np.int64]  # (n,)
    values: NDArray[np.float64]  # (n, F), NaN where missing
    places: NDArray[np.intp]  # (n,) index of the reading's record, ascending
    ignored: int  # features in the messages that the settings do not name
    others: list[tuple[FetchedRecord, Rejected]]  # records that are not readings, in their order

    def select(self, column: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) the readings' part of a column of the records, contiguous."""
        return np.ascontiguousarray(column) if len(column) == len(self.places) else column[self.places]


def decode_readings(decoder: RecordDecoder, features: int, records: Sequence[FetchedRecord]) -> DecodedReadings:
    """The readings in some records, with ``features`` values each."""
    if isinstance(records, RecordColumns) and isinstance(decoder, OwnFormDecoder):
        return _decode_columns(decoder, features, records)
    return _decode_each(decoder, features, records, np.arange(len(records)))


def _decode_columns(decoder: OwnFormDecoder, features: int, records: RecordColumns) -> DecodedReadings:
    found = decoder.decode_columns(records.data, records.table)  # its first columns are those of keys and values
    if found.decoded == len(records):
        places = np.arange(len(records))
        return DecodedReadings(found.names, found.codes, found.timestamp_us, found.values, places, found.ignored, [])
    is_decoded = found.codes >= 0
    places, left = np.flatnonzero(is_decoded), np.flatnonzero(~is_decoded)
    usual = DecodedReadings(
        found.names,
        found.codes[places],
        found.timestamp_us[places],
        found.values[places],
        places,
        found.ignored,
        [],
    )
    return _merge(usual, _decode_each(decoder, features, records.pick(left), left))


def _decode_each(
    decoder: RecordDecoder, features: int, records: Sequence[FetchedRecord], at: NDArray[np.intp]
) -> DecodedReadings:
    """The readings in records, whose places are ``at``, by one call each."""
    decode = decoder.decode
    found: list[Reading] = []
    others: list[tuple[FetchedRecord, Rejected]] = []
    is_reading = np.ones(len(records), np.bool_)
    for place, record in enumerate(records):
        try:
            found.append(decode(record.key, record.value, record.headers, record.timestamp))
        except Rejected as reason:
            is_reading[place] = False
            others.append((record, reason))
    count = len(found)
    names, codes = distinct([reading.sensor_id for reading in found])
    return DecodedReadings(
        names,
        codes,
        np.fromiter((reading.timestamp_us for reading in found), np.int64, count),
        np.array([reading.values for reading in found], np.float64).reshape(count, features),
        at[is_reading],
        sum(reading.ignored for reading in found),
        others,
    )


def _merge(usual: DecodedReadings, unusual: DecodedReadings) -> DecodedReadings:
    """The readings of both, in the order of their records."""
    places = np.concatenate([usual.places, unusual.places])
    order = np.argsort(places)
    names, codes = join_names([(usual.names, usual.codes), (unusual.names, unusual.codes)])
    names, codes = by_appearance(names, codes[order])
    return DecodedReadings(
        names,
        codes,
        np.concatenate([usual.timestamp_us, unusual.timestamp_us])[order],
        np.concatenate([usual.values, unusual.values])[order],
        places[order],
        usual.ignored + unusual.ignored,
        unusual.others,
    )
