"""Reads the numbers in other people's messages: JSON numbers, texts, words and missing values."""

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final

from pipeline.foreign_payloads import quote
from pipeline.messages import Rejected
from pipeline.settings.readings import ReadingsSettings

_NUMBER: Final = re.compile(r"[+-]?(\d{1,400}\.?\d{0,400}|\.\d{1,400})([eE][+-]?\d{1,4})?")

ValueReader = Callable[[str, Any], float | None]


def make_value_reader(settings: ReadingsSettings) -> ValueReader:
    """A function from a feature and its value in a message to a number; None if the value is missing.

    It raises ``Rejected`` for values that are neither.
    """
    texts = frozenset(word.strip() for word in settings.missing if isinstance(word, str))
    numbers = frozenset(number for number in settings.missing if not isinstance(number, str))
    words: Mapping[str, float] = settings.words
    reads_numbers = settings.text_numbers or settings.format == "text"

    def read_text(feature: str, text: str) -> float | None:
        stripped = text.strip()
        if stripped in texts:
            return None
        if stripped in words:
            return words[stripped]
        if not reads_numbers:
            raise Rejected(
                "malformed",
                f"{quote(feature)} is the text {quote(text)}: set readings.text_numbers to read numbers from texts, or "
                "name the text in readings.missing or readings.words",
            )
        if _NUMBER.fullmatch(stripped) is None:
            raise Rejected(
                "malformed",
                f"{quote(feature)} is the text {quote(text)}, not a number: name it in readings.missing or "
                "readings.words if it stands for one",
            )
        return float(stripped)

    def read(feature: str, found: Any) -> float | None:
        kind = type(found)
        if kind is str:
            number = read_text(feature, found)
        elif kind is float or kind is int or kind is Decimal:
            try:
                number = float(found)
            except OverflowError:
                raise Rejected("bad-value", f"{feature} is too large") from None
            if number != number:
                return None  # NaN, which Avro and Protobuf have
        elif found is None:
            return None
        elif kind is bool and ("true" if found else "false") in words:
            return words["true" if found else "false"]
        else:
            raise Rejected("malformed", f"{quote(feature)} is {_name_of_type(found)}, not a number")
        return None if number in numbers else number

    return read


def _name_of_type(found: Any) -> str:
    if isinstance(found, bool):
        word = "true" if found else "false"
        return f"{word} (name it in readings.words to read it as a number)"
    if isinstance(found, dict):
        return "an object (name the field inside it)"
    if isinstance(found, list):
        return f"a list of length {len(found)} (a reading has one value per feature; name a place such as values.0)"
    return f"of type {type(found).__name__}"
