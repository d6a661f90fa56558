"""The stable name of a forecaster, which its transactional id contains.

A restart under the same name aborts its predecessor's open transaction at once. Under a new name, readers of its topics
would wait for the transaction timeout. By default the name is the host and the lowest slot whose lock is free; the
kernel releases a slot's lock when its process ends, even by kill -9.
"""

import fcntl
import os
import socket
import zlib
from dataclasses import dataclass
from typing import IO, Final

from pipeline.errors import StreamgruError
from pipeline.settings import Settings

_SLOTS: Final = 10_000  # most forecasters on one host; more are a mistake
CLIENT_PREFIX: Final = "streamgru-"  # a client id is this prefix and the name


@dataclass(frozen=True)
class Instance:
    """A forecaster's name."""

    name: str
    exclusive: bool  # no other living process has this name, so "fenced" means that a transaction timed out
    lock: IO[str] | None = None  # open file that locks the slot

    def transactional_id(self, settings: Settings) -> str:
        """The id by which brokers fence this forecaster's predecessors."""
        return f"{settings.forecaster.group_id}-{self.name}"

    @property
    def client_id(self) -> str:
        """The client id of this forecaster in its consumer group."""
        return f"{CLIENT_PREFIX}{self.name}"

    def release(self) -> None:
        """Release the name for other processes."""
        if self.lock is not None:
            self.lock.close()


def claim_instance(settings: Settings, name: str | None) -> Instance:
    """Claim the given name or the name in the settings, by default a name that no other living process has.

    Raises:
        StreamgruError: the folder of the locks cannot be written, or all slots are taken.
    """
    chosen = name or settings.forecaster.instance
    if chosen:
        return Instance(chosen, exclusive=False)
    folder = settings.home.resolve() / "forecasters"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for slot in range(_SLOTS):
            lock = (folder / f"slot-{slot}.lock").open("a+")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            # Each home on a host has its own slots, so the name contains a hash of the home.
            name = f"{socket.gethostname()}-{zlib.crc32(str(folder).encode()):08x}-{slot}"
            return Instance(name, exclusive=True, lock=lock)
    except OSError as error:
        raise StreamgruError(
            f"cannot claim a name for this forecaster in {folder}: {error.strerror}. Give it one with --instance NAME"
        ) from error
    raise StreamgruError(f"all {_SLOTS} names in {folder} are taken. Give this forecaster one with --instance NAME")
