"""The golden files: records and models that an earlier commit wrote, and the names of its public interface.

``golden/CASE.json`` holds one small stream under one set of settings: the readings, and the records that a forecaster
of that commit wrote for them. ``before`` is the part up to a restart, ``after`` the part after it. ``golden/CASE`` is
the folder of the model that served. ``golden/names.json`` lists settings, commands and counters.

Names in these files are text, not derived from today's identifiers. A rename in the code therefore fails the tests.
"""

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from model import experts
from pipeline.settings import Settings

FOLDER: Final = Path(__file__).with_name("golden")
NAMES_FILE: Final = FOLDER / "names.json"
CASES: Final = ("off", "light", "full")  # levels of adaptation
MODEL_VERSION: Final = 1
RULE: Final = 4  # model.experts.RULE of the earlier commit; states that adapt under another rule are rebuilt
# Names that the earlier commit wrote nowhere and ignores where it reads them.
NEW_HEADERS: Final = ("ce_dataschema", "ce_subject")  # of forecasts
NEW_STATE_FIELDS: Final = ("units", "unit_evidence")  # the maps of changed units; blank where nothing has changed
NEW_EXPERTS: Final = ("shrunk_gru", "autoregression")  # in the weights of an adapted forecast
NEW_POSITION_FIELDS: Final = ("time_rules",)  # the offsets from which the rules for implausible times hold


@dataclass(frozen=True)
class Record:
    """A record of a topic."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp: int = 0  # send time, ms; golden files leave it out

    def as_json(self) -> dict[str, Any]:
        """The record as an object of a golden file."""
        content: dict[str, Any] = {
            "partition": self.partition,
            "offset": self.offset,
            "key": _text(self.key),
            "value": _text(self.value),
        }
        if self.headers:
            content["headers"] = [[name, _text(value)] for name, value in self.headers]
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Record":
        """The record that ``as_json`` turned into ``content``."""
        headers = tuple((name, _bytes(value)) for name, value in content.get("headers", ()))
        return cls(content["partition"], content["offset"], _bytes(content["key"]), _bytes(content["value"]), headers)


@dataclass(frozen=True)
class Golden:
    """One golden stream."""

    case: str
    content: dict[str, Any]

    @classmethod
    def read(cls, case: str) -> "Golden":
        """The stream of a case."""
        return cls(case, json.loads((FOLDER / f"{case}.json").read_text(encoding="utf-8")))

    @property
    def artefact(self) -> Path:
        """The folder of the model."""
        return FOLDER / self.case

    def settings(self, **more: Any) -> Settings:
        """The settings of the stream; ``more`` adds the addresses of the servers."""
        return Settings(**self.content["settings"], **more)

    @property
    def keeps_states(self) -> bool:
        """Whether this code continues from the stream's states; otherwise it rebuilds them from the readings."""
        return experts.RULE == RULE or not self.settings().adaptation.active

    def records(self, part: str, topic: str) -> list[Record]:
        """The records of a part ("before", "after") on a topic ("readings", "forecasts", "state", "dead_letters")."""
        return [Record.from_json(content) for content in self.content[part][topic]]

    def committed(self, part: str) -> dict[int, tuple[int, str]]:
        """Partition -> the offset and the metadata that the group committed."""
        found = self.content[part]["committed"]
        return {int(partition): (offset, metadata) for partition, (offset, metadata) in found.items()}


def without_new(headers: Iterable[tuple[str, bytes | None]]) -> list[tuple[str, bytes | None]]:
    """The headers of a forecast that the earlier commit wrote too, in their order."""
    return [(name, value) for name, value in headers if name not in NEW_HEADERS]


def as_text(content: dict[str, Any]) -> str:
    """The text of a golden file: one line per record, or per entry of another list or object."""
    return _lines(content, depth=2) + "\n"


def newest(records: Iterable[Record]) -> list[Record]:
    """The records that compaction keeps: the last one of each key and partition, in the order of the log."""
    kept: dict[tuple[int, bytes | None], Record] = {}
    for record in records:
        kept.pop((record.partition, record.key), None)
        kept[record.partition, record.key] = record
    return sorted(kept.values(), key=lambda record: (record.partition, record.offset))


def layout(dtype: np.dtype[Any]) -> Iterator[list[Any]]:
    """Offset, type and shape of each field of a record, without names, because the bytes contain none."""
    assert dtype.names is not None
    assert dtype.fields is not None
    for name in dtype.names:
        field, offset = dtype.fields[name][:2]
        if field.names is not None:
            yield from ([offset + inner, *rest] for inner, *rest in layout(field))
        else:
            yield [offset, field.base.str, list(field.shape)]


def _lines(content: Any, depth: int, indent: str = "") -> str:
    inner = indent + " "
    if depth and isinstance(content, dict) and content:
        entries = [f"{json.dumps(name)}: {_lines(value, depth - 1, inner)}" for name, value in content.items()]
        return "{\n" + ",\n".join(inner + entry for entry in entries) + f"\n{indent}}}"
    if isinstance(content, list) and content and isinstance(content[0], dict):
        return "[\n" + ",\n".join(inner + json.dumps(entry, ensure_ascii=False) for entry in content) + f"\n{indent}]"
    return json.dumps(content, ensure_ascii=False)


def _text(content: bytes | None) -> Any:
    if content is None:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}


def _bytes(content: Any) -> bytes | None:
    if content is None:
        return None
    return content.encode() if isinstance(content, str) else base64.b64decode(content["base64"])
