"""The compiled decoder of readings in streamgru's own form, as encoders usually write it.

It decodes a value only if the value is a valid reading in a usual form. It leaves any other value to
``messages.ReadingDecoder``, which defines the valid readings. Both make the same reading of the same bytes. These
values are left:

- an escape in a text, a field that is unknown or comes twice, a value that is neither a number nor null,
- a number of more than 19 digits, or one beyond the range of ``_POWERS``,
- a time in another spelling than ``2013-03-01T00:00:00.123456+01:00`` or whole milliseconds,
- many features in another order than that of the settings,
- every value that ``ReadingDecoder`` rejects.

A number is converted to the nearest float64 as in "Number Parsing at a Gigabyte per Second" (Lemire, 2021).

All compiled functions and their constants are in this file: numba compiles a cached function again if its own file
changes, and would miss a change in another file.
"""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.kernel import compiled, inner

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]

# Repeated from ``messages``; a test compares them.
LARGEST_VALUE: Final = 1e30
LONGEST_SENSOR_ID_BYTES: Final = 1_024
EARLIEST_TIMESTAMP_US: Final = -2_208_988_800_000_000
LATEST_TIMESTAMP_US: Final = 7_258_118_400_000_000

UNUSUAL: Final = -1  # code of a record that the kernel does not decode
_REFUSED: Final = -1  # position after a part that the kernel does not read

MOST_UNKNOWN: Final = 64  # unknown features of a reading; each is compared with the ones before it
# Comparisons of names in one reading: these per feature, and a constant. A reading whose features are not in the order
# of the settings needs F**2 / 2 of them, which takes longer than the exact decoder if there are hundreds of features.
_COMPARISONS_PER_FEATURE: Final = 8
_MORE_COMPARISONS: Final = 256
_MOST_PROBES: Final = 64  # places of the hash table that are looked at, so that no choice of sensor ids makes it slow
_MOST_DIGITS: Final = 19  # digits that fit into 64 bits
_MOST_TIME_DIGITS: Final = 15  # of a time in milliseconds; its microseconds then fit into 64 bits
_MOST_EXPONENT_DIGITS: Final = 3
_EXACT: Final = np.uint64(2**53)  # integers up to this are float64 numbers
_MOST_EXACT_POWER: Final = 22  # powers of ten up to this are float64 numbers

# Powers of ten that a mantissa is multiplied with. Readings are below 1e30, and a smaller number than these is rare.
_LEAST_POWER: Final = -64
_MOST_POWER: Final = 38


def _power_of_five(q: int) -> Any:
    """The 128 highest bits of 5**q; rounded up if ``q`` is negative."""
    power = 5 ** abs(q)
    if q >= 0:
        shift = power.bit_length() - 128
        return power >> shift if shift > 0 else power << -shift
    bits = (power - 1).bit_length()
    found = 2 ** (bits + 127) // power + 1 if q >= -27 else 2 ** (2 * bits + 128) // power + 1
    return found >> max(0, found.bit_length() - 128)


def _halves(number: int) -> tuple[int, int]:
    return number >> 64, number & (2**64 - 1)


_POWERS = np.array([_halves(_power_of_five(q)) for q in range(_LEAST_POWER, _MOST_POWER + 1)], np.uint64)
_TENS = np.array([float(10**q) for q in range(_MOST_EXACT_POWER + 1)])

# Words of the format, and where each begins. The names of the features follow them in the same bytes.
WORDS: Final = b"sensor_idtimestampvaluesnull"
_SENSOR_ID, _SENSOR_ID_SIZE = 0, 9
_TIMESTAMP, _TIMESTAMP_SIZE = 9, 9
_VALUES, _VALUES_SIZE = 18, 6
_NULL, _NULL_SIZE = 24, 4


@compiled
def decode(
    data: Bytes,
    records: Numbers,
    names: Bytes,
    name_ends: Numbers,
    largest_bytes: int,
    table: Numbers,
    scratch: Numbers,
    codes: Numbers,
    firsts: Numbers,
    timestamp_us: Numbers,
    values: Floats,
) -> tuple[int, int, int]:
    """Decode n records; arrays are contiguous.

    Returns the number of distinct sensors, the number of decoded records, and the number of unknown features in them.

    Args:
        data: bytes that hold the keys and values.
        records: (n, 4 or more) start of the key, its size, start of the value, its size; a size below 0 is a null.
            These are the first columns of ``record_columns``, by number because numba would miss a change of an
            imported constant.
        names: ``WORDS``, then the F features in UTF-8, one after another; name_ends: (F,) where the features end.
        table: hash table of sensors, filled with -1; a power of two of at least 2n places.
        scratch: (F + 2 * MOST_UNKNOWN,) memory.
        codes: (n,) output: number of the record's sensor, by first appearance; ``UNUSUAL`` if the record is left.
        firsts: (n,) output: for each sensor its first record.
        timestamp_us: (n,) output. values: (n, F) output, NaN where missing.
    """
    sensors = decoded = ignored = 0
    for row in range(len(codes)):
        codes[row] = UNUSUAL
        key, key_size, start, size = records[row, 0], records[row, 1], records[row, 2], records[row, 3]
        if size <= 0 or size > largest_bytes or key_size <= 0 or key_size > LONGEST_SENSOR_ID_BYTES:
            continue
        found_us, strangers = _reading(data, start, start + size, key, key_size, names, name_ends, scratch, values, row)
        if strangers < 0:
            continue
        # Find the sensor's code in the hash table, whose places hold codes.
        slot = _hash(data, key, key_size) & (len(table) - 1)
        for _ in range(_MOST_PROBES):
            code = table[slot]
            if code < 0:
                table[slot] = codes[row] = sensors
                firsts[sensors] = row
                sensors += 1
                break
            first = firsts[code]
            if records[first, 1] == key_size and _are_equal(data, key, data, records[first, 0], key_size):
                codes[row] = code
                break
            slot = (slot + 1) & (len(table) - 1)
        if codes[row] != UNUSUAL:
            timestamp_us[row] = found_us
            decoded += 1
            ignored += strangers
    return sensors, decoded, ignored


@inner
def _hash(data: Bytes, start: int, size: int) -> Any:
    """A hash of some bytes, not negative (FNV-1a)."""
    found = np.uint64(14695981039346656037)
    for place in range(start, start + size):
        found = (found ^ np.uint64(data[place])) * np.uint64(1099511628211)
    return np.int64((found ^ (found >> np.uint64(32))) & np.uint64(2**62 - 1))


@inner
def _reading(
    data: Bytes,
    start: int,
    end: int,
    key: int,
    key_size: int,
    names: Bytes,
    name_ends: Numbers,
    scratch: Numbers,
    values: Floats,
    row: int,
) -> Any:
    """Decode a value, and write its numbers into ``values[row]``; the timestamp, and the number of unknown features.

    The number is ``_REFUSED`` if the value is not a valid reading, in a usual form, of the sensor that the key names.
    """
    position = _skip_space(data, start, end)
    if position >= end or data[position] != ord("{"):
        return 0, _REFUSED
    has_sensor = has_time = has_values = False
    timestamp_us = strangers = 0
    position = _skip_space(data, position + 1, end)
    while True:
        name, size, position = _name(data, position, end)
        if position < 0:
            return 0, _REFUSED
        if size == _SENSOR_ID_SIZE and not has_sensor and _are_equal(data, name, names, _SENSOR_ID, size):
            has_sensor = True
            text_end = _text_end(data, position, end)
            if text_end - position - 1 != key_size or not _are_equal(data, position + 1, data, key, key_size):
                return 0, _REFUSED
            position = text_end + 1
        elif size == _TIMESTAMP_SIZE and not has_time and _are_equal(data, name, names, _TIMESTAMP, size):
            has_time = True
            timestamp_us, position = _time(data, position, end)
            if position < 0 or timestamp_us < EARLIEST_TIMESTAMP_US or timestamp_us >= LATEST_TIMESTAMP_US:
                return 0, _REFUSED
        elif size == _VALUES_SIZE and not has_values and _are_equal(data, name, names, _VALUES, size):
            has_values = True
            strangers, position = _features(data, position, end, names, name_ends, scratch, values, row)
            if position < 0:
                return 0, _REFUSED
        else:
            return 0, _REFUSED
        is_last, position = _after_field(data, position, end)
        if position < 0:
            return 0, _REFUSED
        if is_last:
            break
    is_whole = has_sensor and has_time and has_values and _skip_space(data, position + 1, end) == end
    return timestamp_us, strangers if is_whole else _REFUSED


@inner
def _features(
    data: Bytes,
    position: int,
    end: int,
    names: Bytes,
    name_ends: Numbers,
    scratch: Numbers,
    values: Floats,
    row: int,
) -> Any:
    """Read the object of values; the number of unknown features, and the position after the object."""
    if data[position] != ord("{"):
        return 0, _REFUSED
    features = len(name_ends)
    for feature in range(features):
        scratch[feature] = 0  # whether the feature was seen
        values[row, feature] = np.nan
    strangers = known = expected = 0
    comparisons = _COMPARISONS_PER_FEATURE * features + _MORE_COMPARISONS  # that are left
    position = _skip_space(data, position + 1, end)
    while True:
        name, size, position = _name(data, position, end)
        if position < 0:
            return 0, _REFUSED
        feature = _find_feature(data, name, size, names, name_ends, expected)
        turns = feature - expected if feature >= 0 else features
        comparisons -= turns if turns >= 0 else turns + features
        if comparisons < 0:
            return 0, _REFUSED
        if feature >= 0:
            if scratch[feature] != 0:
                return 0, _REFUSED
            scratch[feature] = 1
            expected = feature + 1
        else:
            if strangers == MOST_UNKNOWN or _is_repeated(data, name, size, scratch, features, strangers):
                return 0, _REFUSED
            scratch[features + 2 * strangers] = name
            scratch[features + 2 * strangers + 1] = size
            strangers += 1
        if data[position] == ord("n"):
            if end - position < _NULL_SIZE or not _are_equal(data, position, names, _NULL, _NULL_SIZE):
                return 0, _REFUSED
            position += _NULL_SIZE
        else:
            number, position = _number(data, position, end)
            if position < 0:
                return 0, _REFUSED
            if feature >= 0:
                if not -LARGEST_VALUE <= number <= LARGEST_VALUE:
                    return 0, _REFUSED
                values[row, feature] = number
                known += 1
        is_last, position = _after_field(data, position, end)
        if position < 0:
            return 0, _REFUSED
        if is_last:
            break
    return strangers, position + 1 if known > 0 else _REFUSED


@inner
def _find_feature(data: Bytes, name: int, size: int, names: Bytes, name_ends: Numbers, expected: int) -> Any:
    """The index of a feature; -1 if it is unknown. Most readings have their features in the order of the settings."""
    features = len(name_ends)
    for turn in range(features):
        feature = expected + turn
        if feature >= features:
            feature -= features
        begin = name_ends[feature - 1] if feature > 0 else len(WORDS)
        if name_ends[feature] - begin == size and _are_equal(data, name, names, begin, size):
            return feature
    return -1


@inner
def _is_repeated(data: Bytes, name: int, size: int, scratch: Numbers, features: int, strangers: int) -> bool:
    """Whether the name is one of the unknown features that were seen before it."""
    for place in range(features, features + 2 * strangers, 2):
        if scratch[place + 1] == size and _are_equal(data, name, data, scratch[place], size):
            return True
    return False


@inner
def _are_equal(first: Bytes, first_start: int, second: Bytes, second_start: int, size: int) -> bool:
    for place in range(size):  # noqa: SIM110 - numba has no `all`
        if first[first_start + place] != second[second_start + place]:
            return False
    return True


@inner
def _skip_space(data: Bytes, position: int, end: int) -> int:
    while position < end:
        byte = data[position]
        if byte > 0x20 or not (byte == 0x20 or byte == 0x0A or byte == 0x0D or byte == 0x09):
            break
        position += 1
    return position


@inner
def _name(data: Bytes, position: int, end: int) -> Any:
    """The start and the size of a field's name, and the position of its value; ``_REFUSED`` if no value follows."""
    name_end = _text_end(data, position, end)
    if name_end < 0:
        return 0, 0, _REFUSED
    after = _skip_space(data, name_end + 1, end)
    if after >= end or data[after] != ord(":"):
        return 0, 0, _REFUSED
    after = _skip_space(data, after + 1, end)
    return position + 1, name_end - position - 1, after if after < end else _REFUSED


@inner
def _after_field(data: Bytes, position: int, end: int) -> Any:
    """Whether the object ends after a field, and the position of its closing brace or of the next field's name."""
    position = _skip_space(data, position, end)
    if position >= end:
        return False, _REFUSED
    if data[position] == ord("}"):
        return True, position
    if data[position] != ord(","):
        return False, _REFUSED
    return False, _skip_space(data, position + 1, end)


@inner
def _text_end(data: Bytes, position: int, end: int) -> int:
    """The position of the closing quote of a text without escapes, in valid UTF-8."""
    if position >= end or data[position] != ord('"'):
        return _REFUSED
    position += 1
    while position < end:
        byte = data[position]
        if byte == ord('"'):
            return position
        if byte < 0x20 or byte == ord("\\"):
            return _REFUSED
        position = position + 1 if byte < 0x80 else _after_character(data, position, end)
        if position < 0:
            return _REFUSED
    return _REFUSED


@inner
def _after_character(data: Bytes, position: int, end: int) -> int:
    """The position after a character of several bytes, if it is valid UTF-8: shortest form, and no surrogate."""
    first = np.int64(data[position])
    if first < 0xC2 or first > 0xF4:
        return _REFUSED
    size = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
    if size > end - position:
        return _REFUSED
    second = np.int64(data[position + 1])
    least = 0xA0 if first == 0xE0 else 0x90 if first == 0xF0 else 0x80
    most = 0x9F if first == 0xED else 0x8F if first == 0xF4 else 0xBF
    if second < least or second > most:
        return _REFUSED
    for place in range(position + 2, position + size):
        if data[place] & 0xC0 != 0x80:
            return _REFUSED
    return position + size


# --- times ------------------------------------------------------------------------------------------------------------


@inner
def _time(data: Bytes, position: int, end: int) -> Any:
    """Microseconds since 1970, and the position after the time."""
    if data[position] != ord('"'):
        return _milliseconds(data, position, end)
    position += 1
    if end - position < 21:  # 2013-03-01T00:00:00Z and the closing quote
        return 0, _REFUSED
    year = 100 * _two_digits(data, position) + _two_digits(data, position + 2)
    month, day = _two_digits(data, position + 5), _two_digits(data, position + 8)
    hour, minute, second = (
        _two_digits(data, position + 11),
        _two_digits(data, position + 14),
        _two_digits(data, position + 17),
    )
    is_separated = (
        data[position + 4] == ord("-")
        and data[position + 7] == ord("-")
        and data[position + 10] == ord("T")
        and data[position + 13] == ord(":")
        and data[position + 16] == ord(":")
    )
    if not is_separated or year < 1900 or year > 2200 or month < 1 or month > 12 or day < 1:
        return 0, _REFUSED
    if hour < 0 or hour > 23 or minute < 0 or minute > 59 or second < 0 or second > 59:
        return 0, _REFUSED
    is_leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    is_short = month == 4 or month == 6 or month == 9 or month == 11
    if day > (28 + is_leap if month == 2 else 30 if is_short else 31):
        return 0, _REFUSED
    position += 19
    fraction: Any = 0
    if data[position] == ord("."):
        position += 1
        unit = 1_000_000
        while position < end and ord("0") <= data[position] <= ord("9"):
            if unit == 1:
                return 0, _REFUSED
            unit //= 10
            fraction += unit * (np.int64(data[position]) - ord("0"))
            position += 1
        if unit == 1_000_000:
            return 0, _REFUSED
    offset_minutes = 0
    if position < end and data[position] == ord("Z"):
        position += 1
    else:
        if end - position < 6 or data[position + 3] != ord(":"):
            return 0, _REFUSED
        sign = np.int64(data[position])
        offset_hour, offset_minute = _two_digits(data, position + 1), _two_digits(data, position + 4)
        if sign != ord("+") and sign != ord("-"):
            return 0, _REFUSED
        if offset_hour < 0 or offset_hour > 23 or offset_minute < 0 or offset_minute > 59:
            return 0, _REFUSED
        offset_minutes = 60 * offset_hour + offset_minute
        if sign == ord("-"):
            offset_minutes = -offset_minutes
        position += 6
    if position >= end or data[position] != ord('"'):
        return 0, _REFUSED
    seconds = 86_400 * _days(year, month, day) + 3_600 * hour + 60 * (minute - offset_minutes) + second
    return 1_000_000 * seconds + fraction, position + 1


@inner
def _two_digits(data: Bytes, position: int) -> Any:
    """The number in two digits; a number below -1,000 if they are not digits."""
    tens, ones = np.int64(data[position]) - ord("0"), np.int64(data[position + 1]) - ord("0")
    if tens < 0 or tens > 9 or ones < 0 or ones > 9:
        return -1_000_000
    return 10 * tens + ones


@inner
def _days(year: int, month: int, day: int) -> int:
    """Days since 1970 of a date; a year begins in March here, so that it ends with the leap day."""
    if month < 3:
        year -= 1
        month += 12
    return 365 * year + year // 4 - year // 100 + year // 400 + (153 * (month - 3) + 2) // 5 + day - 719_469


@inner
def _milliseconds(data: Bytes, position: int, end: int) -> Any:
    """The microseconds in a whole number of milliseconds, and the position after the number."""
    is_negative = data[position] == ord("-")
    if is_negative:
        position += 1
    begin = position
    found: Any = 0
    while position < end and ord("0") <= data[position] <= ord("9"):
        found = 10 * found + np.int64(data[position]) - ord("0")
        position += 1
        if position - begin > _MOST_TIME_DIGITS:
            return 0, _REFUSED
    digits = position - begin
    if digits == 0 or (data[begin] == ord("0") and (digits > 1 or is_negative)) or position >= end:
        return 0, _REFUSED
    following = data[position]
    if following == ord(".") or following == ord("e") or following == ord("E"):
        return 0, _REFUSED
    return 1_000 * (-found if is_negative else found), position


# --- numbers ----------------------------------------------------------------------------------------------------------


@inner
def _number(data: Bytes, position: int, end: int) -> Any:
    """The float64 nearest to a number, and the position after the number."""
    is_negative = data[position] == ord("-")
    if is_negative:
        position += 1
    begin = position
    mantissa, digits, position = _digits(data, position, end, np.uint64(0), 0)
    if position <= begin or (data[begin] == ord("0") and position - begin > 1):
        return 0.0, _REFUSED
    power = 0
    if position < end and data[position] == ord("."):
        begin = position + 1
        mantissa, digits, position = _digits(data, begin, end, mantissa, digits)
        if position <= begin:
            return 0.0, _REFUSED
        power = begin - position
    elif is_negative and mantissa == np.uint64(0):
        return 0.0, _REFUSED  # an integer has no negative zero
    if position < end and (data[position] == ord("e") or data[position] == ord("E")):
        position += 1
        sign = 1
        if position < end and (data[position] == ord("+") or data[position] == ord("-")):
            sign = 1 if data[position] == ord("+") else -1
            position += 1
        begin = position
        exponent: Any = 0
        while position < end and ord("0") <= data[position] <= ord("9"):
            exponent = 10 * exponent + np.int64(data[position]) - ord("0")
            position += 1
            if position - begin > _MOST_EXPONENT_DIGITS:
                return 0.0, _REFUSED
        if position == begin:
            return 0.0, _REFUSED
        power += sign * exponent
    if mantissa <= _EXACT and -_MOST_EXACT_POWER <= power <= _MOST_EXACT_POWER:
        number: Any = np.float64(mantissa)
        number = number * _TENS[power] if power >= 0 else number / _TENS[-power]
    elif mantissa == np.uint64(0):
        number = 0.0
    else:
        number = _nearest(mantissa, power)
        if number < 0:
            return 0.0, _REFUSED
    return -number if is_negative else number, position


@inner
def _digits(data: Bytes, position: int, end: int, mantissa: Any, digits: int) -> Any:
    """The mantissa and the number of its significant digits, both with further digits, and the position after these.

    The position is ``_REFUSED`` if the mantissa would not fit. The digits are counted apart from it, because a mantissa
    of 2**64 wraps to 0.
    """
    while position < end and ord("0") <= data[position] <= ord("9"):
        digit = data[position] - np.uint8(ord("0"))
        mantissa = np.uint64(10) * mantissa + np.uint64(digit)
        digits += digits > 0 or digit != np.uint8(0)
        position += 1
        if digits > _MOST_DIGITS:
            return mantissa, digits, _REFUSED
    return mantissa, digits, position


@inner
def _nearest(mantissa: Any, power: int) -> float:
    """The float64 nearest to ``mantissa * 10**power``; -1 if 128 bits of the power do not decide it."""
    if power < _LEAST_POWER or power > _MOST_POWER:
        return -1.0
    zeros = 0
    for step in (32, 16, 8, 4, 2, 1):
        if mantissa >> np.uint64(64 - step) == np.uint64(0):
            mantissa <<= np.uint64(step)
            zeros += step
    high, low = _multiply(mantissa, _POWERS[power - _LEAST_POWER, 0])
    if high & np.uint64(0x1FF) == np.uint64(0x1FF):
        more, _ = _multiply(mantissa, _POWERS[power - _LEAST_POWER, 1])
        low += more
        if low < more:
            high += np.uint64(1)
    if low == np.uint64(2**64 - 1) and power < -27:  # from -27 to 55 the bits of the power are always enough
        return -1.0
    top = high >> np.uint64(63)
    shift = top + np.uint64(9)
    bits = high >> shift  # 54 bits: one more than a float64 has
    if low <= np.uint64(1) and -4 <= power <= 23 and bits & np.uint64(3) == np.uint64(1) and bits << shift == high:
        bits &= ~np.uint64(1)  # halfway between two numbers: round to the even one
    bits = (bits + (bits & np.uint64(1))) >> np.uint64(1)
    # The number is bits * 2**(e - 52), e being the exponent of its highest bit.
    exponent: Any = ((217_706 * power) >> 16) + 63 + np.int64(top) - zeros
    return math.ldexp(np.float64(bits), exponent - 52)


@inner
def _multiply(first: Any, second: Any) -> Any:
    """The upper and lower 64 bits of a product of 64-bit numbers."""
    half = np.uint64(32)
    mask = np.uint64(0xFFFFFFFF)
    a, b = first >> half, first & mask
    c, d = second >> half, second & mask
    bd, ad, bc = b * d, a * d, b * c
    middle = (bd >> half) + (ad & mask) + (bc & mask)
    return a * c + (ad >> half) + (bc >> half) + (middle >> half), (middle << half) | (bd & mask)
