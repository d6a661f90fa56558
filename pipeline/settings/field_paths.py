"""Paths to the fields of other people's messages, as the settings write them.

payload.temperature      a field inside a field, as in TOML's dotted keys
payload."a.b"            quotes around a name with a dot, an ``@`` or a brace
metrics.0.value          a place in a list, counted from 0
.                        the whole message
@key, @key.id            the record's key, or a field inside a JSON key
@header.device           a header of the record
@record_timestamp        the time that the producer or the broker stamped on the record
{site}/{@key}            a template: a text with paths in braces
"""

import re
from dataclasses import dataclass
from typing import Any, Final, Literal

WHOLE_MESSAGE: Final = "."
_SEGMENT: Final = re.compile(r'"(?P<quoted>(?:[^"\\]|\\.)+)"|(?P<bare>[^."@{}\s][^."{}]*)')
_BRACES: Final = re.compile(r'\{((?:[^{}"]|"(?:[^"\\]|\\.)*")+)\}')
_ESCAPED: Final = re.compile(r"\\(.)")

Path = tuple[str, ...]


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT: Final = _Absent()  # a path that leads to no field


class SeveralReadings(ValueError):
    """A path picks one object of a list that holds several."""


@dataclass(frozen=True)
class Source:
    """A place in a record: the value, the key, a header, or the record's own timestamp."""

    part: Literal["value", "key", "header", "record_timestamp"]
    path: Path = ()  # inside the value or the key
    header: str = ""

    def __str__(self) -> str:
        if self.part == "header":
            return f"header {self.header!r}"
        if self.part == "record_timestamp":
            return "the record's timestamp"
        name = write_path(self.path)
        if self.part == "key":
            return f"field {name!r} of the key" if self.path else "the key"
        return f"field {name!r}" if self.path else "the value"


def parse_path(text: str) -> Path:
    """The segments of a dotted path; an empty tuple for the whole message.

    Raises:
        ValueError: the text is not a path.
    """
    if text == WHOLE_MESSAGE:
        return ()
    segments: list[str] = []
    position = 0
    while True:
        match = _SEGMENT.match(text, position)
        if match is None:
            raise ValueError(
                f"{text!r} is not a path to a field: write names with dots between them, as in payload.temperature, "
                'and quotes around a name with other signs, as in payload."a.b"'
            )
        quoted = match["quoted"]
        segments.append(match["bare"].rstrip() if quoted is None else _ESCAPED.sub(r"\1", quoted))
        position = match.end()
        if position == len(text):
            return tuple(segments)
        if text[position] != ".":
            raise ValueError(f"{text!r} is not a path to a field: a dot is missing after {text[:position]!r}")
        position += 1


def write_path(path: Path) -> str:
    """The text of a path, for messages."""
    return ".".join(f'"{name}"' if _SEGMENT.fullmatch(name) is None else name for name in path) or WHOLE_MESSAGE


def parse_source(text: str) -> Source:
    """The place that a text names.

    Raises:
        ValueError: the text names no place in a record.
    """
    if not text.startswith("@"):
        return Source("value", parse_path(text))
    if text == "@key":
        return Source("key")
    if text.startswith("@key."):
        return Source("key", parse_path(text.removeprefix("@key.")))
    if text.startswith("@header.") and len(text) > len("@header."):
        return Source("header", header=text.removeprefix("@header."))
    if text == "@record_timestamp":
        return Source("record_timestamp")
    raise ValueError(
        f"{text!r} names no part of a record: use @key, @key.FIELD, @header.NAME or @record_timestamp, and quotes for "
        f"a field with this name, as in '\"{text}\"'"
    )


def parse_template(text: str) -> tuple[str | Source, ...]:
    """The literal texts and places of a template; a text without braces is a single place.

    Raises:
        ValueError: a place in braces is invalid, or a brace has no partner.
    """
    if "{" not in _without_quoted(text) and "}" not in _without_quoted(text):
        return (parse_source(text),)
    parts: list[str | Source] = []
    position = 0
    for match in _BRACES.finditer(text):
        parts += [text[position : match.start()], parse_source(match[1])]
        position = match.end()
    parts.append(text[position:])
    literals = [part for part in parts if isinstance(part, str)]
    if any(brace in literal for literal in literals for brace in "{}"):
        raise ValueError(f"{text!r} has a brace without its partner: write paths in braces, as in {{device}}/{{name}}")
    return tuple(part for part in parts if part != "")


def _without_quoted(text: str) -> str:
    return re.sub(r'"(?:[^"\\]|\\.)*"', "", text)


def follow(content: Any, path: Path) -> Any:
    """The field at a path; ``ABSENT`` if the path leads nowhere.

    Raises:
        SeveralReadings: place 0 of a list with several objects: the other objects would be lost.
    """
    for name in path:
        if type(content) is dict:
            content = content.get(name, ABSENT)
        elif type(content) is list and name.isdecimal() and len(name) < 10:
            place = int(name)
            if place == 0 and len(content) > 1 and type(content[0]) is dict:
                raise SeveralReadings(f"the list before {write_path(path)!r}'s place 0 holds {len(content)} objects")
            content = content[place] if place < len(content) else ABSENT
        else:
            return ABSENT
    return content
