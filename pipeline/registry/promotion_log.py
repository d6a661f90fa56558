"""The history of a version's promotions, as tags of the version: the alias, the time, the person and the reason.

Each event is a tag of its own, ``promotion.2026-03-01T12:00:00.123Z``, so that a later event does not replace it.
MLflow's page of the version lists the tags.
"""

import getpass
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from pipeline.best_effort import best_effort
from pipeline.registry.versions import Registry
from pipeline.text.visible_text import visible

log = logging.getLogger("streamgru.registry")

EVENT_PREFIX: Final = "promotion."
GATE: Final = "the gate"
_LONGEST_EVENT: Final = 4_000  # characters; MLflow before version 3.2 refuses a tag of 5,000 characters


@dataclass(frozen=True)
class Mover:
    """The person or process that moves an alias or asks for it, and the reason."""

    who: str
    why: str = ""

    def __str__(self) -> str:
        return f"by {self.who}" + (f": {self.why}" if self.why else "")


@dataclass(frozen=True)
class Event:
    """An entry of the history."""

    at: str  # ISO 8601 in UTC
    text: str


def this_user() -> str:
    """The user of this process and its machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user may have no name
        user = f"user {os.getuid()}"
    return f"{user} on {socket.gethostname()}"


def record_move(registry: Registry, alias: str, version: int, previous: int | None, mover: Mover) -> None:
    """Record on both versions that an alias has moved; a failure is only a warning, because the alias has moved.

    A move to an older version is a rollback.
    """
    if previous is None:
        _record(registry, version, f"{alias}: promoted {mover}")
        return
    is_rollback = version < previous
    verb = "rolled back to this version from" if is_rollback else "promoted in place of"
    _record(registry, version, f"{alias}: {verb} version {previous} {mover}")
    verb = "rolled back" if is_rollback else "replaced"
    _record(registry, previous, f"{alias}: {verb}, now version {version}, {mover}")


def record_refusal(registry: Registry, alias: str, version: int, reason: object, mover: Mover) -> None:
    """Record on a version that it did not get an alias, with the reason; a failure is only a warning."""
    _record(registry, version, f"{alias}: refused ({reason}); asked for {mover}")


def events(tags: Mapping[str, str]) -> list[Event]:
    """The history in the tags of a version, newest first."""
    found = [Event(key.removeprefix(EVENT_PREFIX), text) for key, text in tags.items() if key.startswith(EVENT_PREFIX)]
    return sorted(found, key=lambda event: event.at, reverse=True)


def _record(registry: Registry, version: int, text: str) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    with best_effort(f"the tag about the promotion on version {version}", log):
        registry.tag(version, {f"{EVENT_PREFIX}{now}": visible(text, _LONGEST_EVENT)})
