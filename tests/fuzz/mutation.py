"""Mutations of valid bytes."""

import random
from collections.abc import Sequence

# Text and bytes that tend to break readers of JSON, of UTF-8 and of lengths.
_TEXTS = (
    *("null", "true", "NaN", "-Infinity", "1e400", "-1e-400", "1e308", "1" * 400, "0.1e", "-0", "9" * 19),
    *("{", "}", "[" * 3_000, '{"values":' * 500, '"', "\\u0000", "\\ud800", "\\", "\ufeff", "\x00"),
    *('"timestamp":"9999-12-31T23:59:59.999999Z"', '"timestamp":253402300799999', '"timestamp":-1e18'),
    *('"values":{}', '"2013-02-30T00:00:00Z"', '"2013-03-01T24:00:00Z"', '"2013-03-01T00:00:60Z"'),
    *("+99:59", "-00:00", "é" * 700),
)
_BYTES = (b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x7f\xf8", b"SGRU")
PIECES = (*(text.encode() for text in _TEXTS), *_BYTES)


def mutate(original: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """Change ``original`` in one to six places: bits, bytes, cuts, repeats, awkward pieces, parts of ``others``."""
    found = bytearray(original)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        at = chance.randrange(len(found) + 1)
        end = min(len(found), at + chance.choice((1, 1, 2, 8, 40)))
        match chance.randrange(8):
            case 0 if at < len(found):
                found[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(found):
                found[at] = chance.randrange(256)
            case 2:
                del found[at:end]
            case 3:
                found[at:at] = found[at:end] * chance.choice((1, 2, 300))
            case 4:
                found[at:at] = chance.choice(PIECES)
            case 5:
                found[at:end] = chance.choice(PIECES)
            case 6:
                other = chance.choice(others)
                begin = chance.randrange(len(other) + 1)
                found[at:end] = other[begin : begin + chance.choice((1, 8, 60))]
            case 7:
                del found[at:]
    return bytes(found)
