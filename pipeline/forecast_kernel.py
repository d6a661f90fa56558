"""The compiled kernel of ``forecast_encoding``: writes the JSON of forecasts, and their headers, into one buffer.

A number is written as the integer that it was rounded to, with a decimal point (``_write_number``). This is the text
that msgspec and orjson write, the shortest decimal number whose nearest float64 is the rounded forecast v:

- v is the float64 nearest to m / 10**d, for integers m and d with |m| <= 10**15 and 0 <= d <= 15. IEEE 754 division
  returns it, because float64 holds m and 10**d exactly.
- So, trailing zeros apart, m / 10**d has at most 15 significant digits, and reading it gives v.
- Two different decimal numbers of at most 15 significant digits never have the same nearest float64, because
  10**15 < 2**52. So any other decimal number that gives v has more digits than m / 10**d.

Numbers of other forms, and non-finite ones, are left to the caller (``write_values``).

All compiled functions and their constants are in this file: numba compiles a cached function again if its own file
changes, and would miss a change in another file.

Letters: n forecasts, m of them written, K targets, Q quantiles, h horizon steps, E experts.
"""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.kernel import compiled, inner

Buffer = NDArray[np.uint8]
Indexes = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

MOST_DECIMALS: Final = 15
_LARGEST: Final = 1e15  # numbers below it are rounded to an m of at most 10**15
_POWERS: Final = np.array([10**exponent for exponent in range(MOST_DECIMALS + 2)], np.int64)
# Added to a float64 of at most 2**51, it leaves no bits for a fraction: the sum is rounded to an integer, half to even.
_ROUNDING: Final = 1.5 * 2.0**52
NUMBER_BYTES: Final = 25  # of the longest float64 and a comma
INTEGER_BYTES: Final = 20  # of the longest int64
TIME_BYTES: Final = 27  # of a time with microseconds
# Bytes behind the last text of a buffer: digits are written eight at a time, even if fewer belong to the number.
SLACK_BYTES: Final = 16

_COMMA: Final = ord(",")
_DOT: Final = ord(".")
_MINUS: Final = ord("-")
_ZERO: Final = ord("0")
_COLON: Final = ord(":")
_EXPONENT: Final = ord("e")
_BEFORE_CLOCK: Final = ord("T")
_AFTER_CLOCK: Final = ord("Z")
_DAY_US: Final = 86_400_000_000

# Constant pieces of a forecast after the K * Q openings of lists, in the order in which they are written.
BEFORE_PARTITION: Final = 0
BEFORE_OFFSET: Final = 1
BEFORE_ORIGIN: Final = 2
BEFORE_STEPS: Final = 3
COLD: Final = 4
WARM: Final = 5
FIRST_WEIGHT: Final = 6  # K * E openings of weights, then the end of the forecast

# Constant pieces of a header block
BEFORE_ID: Final = 0  # headers that all forecasts share, and the name of the next one
ID_START: Final = 1  # of the value of `ce_id`, up to the partition
ID_END: Final = 2  # from the version on
BEFORE_TIME: Final = 3
BEFORE_TRACEPARENT: Final = 4
CONSTANT_HEADERS: Final = 7  # headers of a block without subject and traceparent


# --- texts ------------------------------------------------------------------------------------------------------------
# Each function writes at the place `at` of `out`, and returns the place after its text.


@inner
def _copy(out: Buffer, at: int, data: Buffer, start: int, end: int) -> int:
    to, source = np.uint64(at), np.uint64(start)  # unsigned: no check for negative places, so the loop is vectorised
    for i in range(np.uint64(end - start)):
        out[to + i] = data[source + i]
    return at + end - start


@inner
def _eight_digits(number: int) -> Any:
    """The decimal digits of a number below 10**8, one per byte, the first digit in the lowest byte.

    Two, four and eight digits are split at once, in parts of one integer, with a multiplication for each division
    (Johnny Lee, "Fast number to string", 2016).
    """
    value = np.uint64(number)
    high = value // np.uint64(10_000)
    fours = high | ((value - high * np.uint64(10_000)) << np.uint64(32))
    high = ((fours * np.uint64(10_486)) >> np.uint64(20)) & np.uint64(0x7F_0000_007F)
    twos = ((fours - high * np.uint64(100)) << np.uint64(16)) + high
    high = ((twos * np.uint64(103)) >> np.uint64(10)) & np.uint64(0x000F_000F_000F_000F)
    return high + ((twos - high * np.uint64(10)) << np.uint64(8))


@inner
def _store_digits(out: Buffer, at: int, digits: Any) -> None:
    """Write eight digits of ``_eight_digits``."""
    text = digits | np.uint64(0x3030_3030_3030_3030)
    to = np.uint64(at)
    for i in range(np.uint64(8)):
        out[to + i] = np.uint8((text >> (np.uint64(8) * i)) & np.uint64(0xFF))


@inner
def _size(number: int) -> int:
    """The number of digits of a number from 0 to 10**8 - 1."""
    # A sum of comparisons has no branches. The size varies from number to number, so the processor would often predict
    # a branch wrongly.
    size = 1 + (number > 9) + (number > 99) + (number > 999) + (number > 9_999)
    return size + (number > 99_999) + (number > 999_999) + (number > 9_999_999)


@inner
def _write_small_integer(out: Buffer, at: int, number: int) -> int:
    """A number from 0 to 10**8 - 1."""
    size = _size(number)
    _store_digits(out, at, _eight_digits(number) >> np.uint64(64 - 8 * size))
    return at + size


@inner
def _write_integer(out: Buffer, at: int, number: int) -> int:
    """A number that is not negative."""
    if number < 100_000_000:
        return _write_small_integer(out, at, number)
    high = number // 100_000_000
    if high < 100_000_000:
        at = _write_small_integer(out, at, high)
    else:
        at = _write_small_integer(out, at, high // 100_000_000)
        _store_digits(out, at, _eight_digits(high % 100_000_000))
        at += 8
    _store_digits(out, at, _eight_digits(number % 100_000_000))
    return at + 8


@inner
def _write_signed(out: Buffer, at: int, number: int) -> int:
    if number < 0:
        out[at] = _MINUS
        return _write_integer(out, at + 1, -number)
    return _write_integer(out, at, number)


@inner
def _significant(digits: Any, size: int) -> int:
    """The number of digits without trailing zeros; at least 1."""
    while size > 1 and (digits >> np.uint64(8 * (size - 1))) & np.uint64(0xFF) == np.uint64(0):
        size -= 1
    return size


@inner
def _write_number(out: Buffer, at: int, integer: int, decimals: int) -> int:
    """The JSON of ``integer`` / 10**``decimals``, see the module."""
    out[at] = _MINUS
    at += integer < 0
    integer = abs(integer)
    if decimals > 5 and 0 < integer < _POWERS[decimals - 5]:
        return _write_below_1e_5(out, at, integer, decimals)
    if 0 < decimals < 8 and integer < 100_000_000:
        return _write_eight_digits(out, at, integer, decimals)
    power = _POWERS[decimals]
    # The quotient cannot be rounded up to a whole number: the distance is 1 / power, 2**-50 of the quotient or more.
    whole = int(np.float64(integer) / np.float64(power))
    part = integer - whole * power
    at = _write_integer(out, at, whole)
    out[at] = _DOT
    at += 1
    if decimals <= 8:
        digits = _eight_digits(part * _POWERS[8 - decimals])
        _store_digits(out, at, digits)
        return at + _significant(digits, 8)
    part *= _POWERS[16 - decimals]
    digits = _eight_digits(part // 100_000_000)
    _store_digits(out, at, digits)
    rest = part % 100_000_000
    if rest == 0:
        return at + _significant(digits, 8)
    digits = _eight_digits(rest)
    _store_digits(out, at + 8, digits)
    return at + 8 + _significant(digits, 8)


@inner
def _write_eight_digits(out: Buffer, at: int, integer: int, decimals: int) -> int:
    """The same for most numbers: at most eight digits, of which 1 to 7 follow the point."""
    digits = _eight_digits(integer)
    before = max(1, _size(integer) - decimals)  # digits before the point
    _store_digits(out, at, digits >> np.uint64(8 * (8 - decimals - before)))
    at += before
    out[at] = _DOT
    digits >>= np.uint64(8 * (8 - decimals))
    _store_digits(out, at + 1, digits)
    return at + 1 + _significant(digits, decimals)


@inner
def _write_below_1e_5(out: Buffer, at: int, integer: int, decimals: int) -> int:
    """A positive number below 10**-5, in the form 1.5e-6."""
    while integer % 10 == 0:
        integer //= 10
        decimals -= 1
    end = _write_integer(out, at + 1, integer)
    exponent = decimals - (end - at - 2)
    out[at] = out[at + 1]
    if end == at + 2:
        end -= 1  # one digit, and no point
    else:
        out[at + 1] = _DOT
    out[end] = _EXPONENT
    out[end + 1] = _MINUS
    return _write_integer(out, end + 2, exponent)


@inner
def _write_time(out: Buffer, at: int, timestamp_us: int) -> int:
    """ISO 8601 in UTC, in seconds or, if needed, microseconds, of a time in the years 0 to 9999.

    The date is Howard Hinnant's ``civil_from_days``: years begin on 1 March, so that the leap day is their last one.
    """
    days = timestamp_us // _DAY_US
    rest_us = timestamp_us - days * _DAY_US
    days += 719_468  # since 0000-03-01
    era = days // 146_097  # of 400 years
    day_of_era = days - era * 146_097
    year_of_era = (day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month_from_march = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * month_from_march + 2) // 5 + 1
    month = month_from_march + 3 if month_from_march < 10 else month_from_march - 9
    year = year_of_era + era * 400 + (1 if month <= 2 else 0)
    seconds = rest_us // 1_000_000
    fraction_us = rest_us - seconds * 1_000_000
    _store_digits(out, at, _eight_digits(year * 10_000))
    _store_digits(out, at + 5, _eight_digits(month * 1_000_000 + day * 1_000))
    out[at + 4] = _MINUS
    out[at + 7] = _MINUS
    clock = (seconds // 3_600) * 1_000_000 + (seconds // 60 % 60) * 1_000 + seconds % 60
    _store_digits(out, at + 11, _eight_digits(clock))
    out[at + 10] = _BEFORE_CLOCK
    out[at + 13] = _COLON
    out[at + 16] = _COLON
    at += 19
    if fraction_us:
        out[at] = _DOT
        _store_digits(out, at + 1, _eight_digits(fraction_us * 100))
        at += 7
    out[at] = _AFTER_CLOCK
    return at + 1


@inner
def _write_length(out: Buffer, at: int, length: int) -> int:
    """Kafka's varint of a length."""
    rest = length << 1
    while rest > 0x7F:
        out[at] = 0x80 | (rest & 0x7F)
        rest >>= 7
        at += 1
    out[at] = rest
    return at + 1


@inner
def _integer_size(number: int) -> int:
    """The digits of a number that is not negative."""
    size = 1
    while number > 9:
        number //= 10
        size += 1
    return size


# --- forecasts --------------------------------------------------------------------------------------------------------


@inner
def _first_at_least(ascending: Floats, number: float) -> int:
    """The index of the first of some ascending numbers that is at least ``number``; their number if none is."""
    low, high = 0, len(ascending)
    while low < high:
        middle = (low + high) // 2
        if ascending[middle] < number:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def write_values(
    chosen: Indexes,
    quantiles: Floats,
    scale: Floats,
    is_rounded: bool,
    sensors: Indexes,
    timestamp_us: Indexes,
    partitions: Indexes,
    offsets: Indexes,
    origin: Indexes,
    steps: Indexes,
    warm: Flags,
    weights: Floats,
    scales: Floats,
    powers: Floats,
    texts: Buffer,
    text_ends: Indexes,
    heads: Buffer,
    head_starts: Indexes,
    head_ends: Indexes,
    pieces: Buffer,
    piece_ends: Indexes,
    out: Buffer,
    ends: Indexes,
    is_written: Flags,
) -> None:
    """Write the JSON of the chosen forecasts, one after the other.

    A forecast takes no bytes if one of its numbers has another form (see the module) and the caller gave no texts.

    Args:
        chosen: (m,) places of the forecasts.
        quantiles: (n, K, Q, h); scale: (n, K) their sensors' scales, which give the digits.
        is_rounded: whether the quantiles are rounded already, so that rounding must not change them. Quantiles of a
            sensor without a scale are not rounded either.
        sensors: (n,) the numbers of the sensors; timestamp_us, partitions, offsets: (n,) of the readings.
        origin, steps, warm: (n,) of the states.
        weights: (n, K, E).
        scales: ascending powers of ten: numbers of a sensor with the first scale have as many decimals as ``powers``
            has positive exponents, and one less for each following scale.
        powers: 10**0, 10**1, and so on.
        texts: the numbers in each list of h, with commas, if the caller has them; otherwise of any content.
        text_ends: (m * K * Q + 1,) ends of the lists in ``texts`` after a 0; of size 1 without texts.
        heads: JSON of the sensors up to the time; string i is that of the sensor with number i.
        pieces: the constant pieces, which follow each other.
        piece_ends: ends of the pieces after a 0: openings of the K * Q lists, then from ``BEFORE_PARTITION`` on.
        out: enough bytes.
        ends: (m,) is filled with the end of each forecast in ``out``.
        is_written: (m,) is filled.
    """
    _, K, Q, h = quantiles.shape
    lists, E = K * Q, weights.shape[2]
    has_texts = len(text_ends) > 1
    at = 0
    for row in range(len(chosen)):
        n = chosen[row]
        began = at
        sensor = sensors[n]
        at = _copy(out, at, heads, head_starts[sensor], head_ends[sensor])
        at = _write_time(out, at, timestamp_us[n])
        is_plain = True
        for k in range(K):
            is_known = math.isfinite(scale[n, k]) and scale[n, k] > 0.0
            most = len(powers) - 1
            places = max(most - _first_at_least(scales, scale[n, k] if is_known else 1.0), -most)
            ten, exact = powers[abs(places)], is_rounded or not is_known
            for q in range(Q):
                piece = k * Q + q
                at = _copy(out, at, pieces, piece_ends[piece], piece_ends[piece + 1])
                if has_texts:
                    text = row * lists + piece
                    at = _copy(out, at, texts, text_ends[text], text_ends[text + 1])
                    continue
                if places > MOST_DECIMALS:
                    is_plain = False
                    break
                for step in range(h):
                    value = quantiles[n, k, q, step]
                    scaled = value * ten if places >= 0 else value / ten
                    if not abs(scaled) < _LARGEST:  # also if it is NaN
                        is_plain = False
                        break
                    whole = (scaled + _ROUNDING) - _ROUNDING
                    if exact and (whole / ten if places >= 0 else whole * ten) != value:
                        is_plain = False
                        break
                    if places >= 0:
                        at = _write_number(out, at, int(whole), places)
                    else:
                        whole *= ten
                        if not abs(whole) < _LARGEST:
                            is_plain = False
                            break
                        at = _write_number(out, at, int(whole), 0)
                    out[at] = _COMMA
                    at += 1
                if not is_plain:
                    break
                at -= 1  # no comma after the last number
            for e in range(E):
                is_plain = is_plain and math.isfinite(weights[n, k, e])
            if not is_plain:
                break
        if not is_plain:
            at = began
        else:
            piece = lists + BEFORE_PARTITION
            at = _copy(out, at, pieces, piece_ends[piece], piece_ends[piece + 1])
            at = _write_signed(out, at, partitions[n])
            piece = lists + BEFORE_OFFSET
            at = _copy(out, at, pieces, piece_ends[piece], piece_ends[piece + 1])
            at = _write_signed(out, at, offsets[n])
            piece = lists + BEFORE_ORIGIN
            at = _copy(out, at, pieces, piece_ends[piece], piece_ends[piece + 1])
            at = _write_signed(out, at, origin[n])
            piece = lists + BEFORE_STEPS
            at = _copy(out, at, pieces, piece_ends[piece], piece_ends[piece + 1])
            at = _write_signed(out, at, steps[n])
            piece = lists + (WARM if warm[n] else COLD)
            at = _copy(out, at, pieces, piece_ends[piece], piece_ends[piece + 1])
            piece = lists + FIRST_WEIGHT
            for k in range(K):
                for e in range(E):
                    at = _copy(out, at, pieces, piece_ends[piece], piece_ends[piece + 1])
                    thousandths = (weights[n, k, e] * 1e3 + _ROUNDING) - _ROUNDING
                    at = _write_number(out, at, int(thousandths), 3)
                    piece += 1
            at = _copy(out, at, pieces, piece_ends[piece], piece_ends[piece + 1])
        ends[row] = at
        is_written[row] = is_plain


@compiled
def write_headers(
    sensors: Indexes,
    timestamp_us: Indexes,
    partitions: Indexes,
    offsets: Indexes,
    subjects: Buffer,
    subject_starts: Indexes,
    subject_ends: Indexes,
    parents: Buffer,
    parent_ends: Indexes,
    has_parent: Flags,
    pieces: Buffer,
    piece_ends: Indexes,
    out: Buffer,
    ends: Indexes,
) -> None:
    """Write the header blocks of n forecasts, one after the other.

    Args:
        sensors, timestamp_us, partitions, offsets: as in ``write_values``.
        subjects: the whole header `ce_subject` of each sensor, empty if it has none; string i is that of sensor i.
        parents: values of `traceparent`, which follow each other.
        parent_ends: (n + 1,) their ends after a 0.
        has_parent: (n,) whether the header is written; or of size 0 if it never is.
        pieces: the constant pieces from ``BEFORE_ID`` on, which follow each other.
        piece_ends: ends of the pieces after a 0.
        out: enough bytes.
        ends: (n,) is filled with the end of each block in ``out``.
    """
    at = 0
    id_size = piece_ends[ID_END + 1] - piece_ends[ID_START] + 1  # without partition and offset
    for n in range(len(sensors)):
        sensor, partition, offset = sensors[n], partitions[n], offsets[n]
        subject_start, subject_end = subject_starts[sensor], subject_ends[sensor]
        is_traced = len(has_parent) > 0 and has_parent[n]
        at = _write_length(out, at, CONSTANT_HEADERS + (subject_end > subject_start) + is_traced)
        at = _copy(out, at, pieces, piece_ends[BEFORE_ID], piece_ends[BEFORE_ID + 1])
        at = _write_length(out, at, id_size + _integer_size(partition) + _integer_size(offset))
        at = _copy(out, at, pieces, piece_ends[ID_START], piece_ends[ID_START + 1])
        at = _write_integer(out, at, partition)
        out[at] = _MINUS
        at = _write_integer(out, at + 1, offset)
        at = _copy(out, at, pieces, piece_ends[ID_END], piece_ends[ID_END + 1])
        at = _copy(out, at, pieces, piece_ends[BEFORE_TIME], piece_ends[BEFORE_TIME + 1])
        time_end = _write_time(out, at + 1, timestamp_us[n])
        at = _write_length(out, at, time_end - at - 1)  # one byte
        at = _copy(out, time_end, subjects, subject_start, subject_end)
        if is_traced:
            at = _copy(out, at, pieces, piece_ends[BEFORE_TRACEPARENT], piece_ends[BEFORE_TRACEPARENT + 1])
            at = _write_length(out, at, parent_ends[n + 1] - parent_ends[n])
            at = _copy(out, at, parents, parent_ends[n], parent_ends[n + 1])
        ends[n] = at


def prepare() -> None:
    """Compile the kernel, or load it from numba's cache."""
    none, text, flags = np.empty(0, np.int64), np.empty(0, np.uint8), np.empty(0, np.bool_)
    readings, strings = (none, none, none, none), (text, none, none)
    quantiles: Any = np.empty((0, 1, 1, 1))
    number, column = quantiles[:, 0, 0], quantiles[:, 0, 0, 0].copy()
    write_values(
        *(none, quantiles, number, False, *readings, none, none, flags, quantiles[:, 0], column, column),
        *(text, none, *strings, text, none, text.copy(), none, flags),
    )
    write_headers(*readings, *strings, text, none, flags, text, np.zeros(6, np.int64), text.copy(), none)
