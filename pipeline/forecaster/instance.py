"""The stable name of a forecaster, from which its transactional id is made.

A restart under the same name ends its predecessor's open transaction at once; under a new name its readers would wait
for the transaction timeout. By default the name is the host and the lowest slot that no living process of this host
holds: the lock goes with the process, however it ends.
"""

import fcntl
import os
import socket
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from pipeline.errors import StreamgruError
from pipeline.settings import Settings

_SLOTS = 10_000  # more forecasters than that on one host is a mistake


CLIENT_PREFIX: Final = "streamgru-"  # before the name, in what the consumer group calls its members


@dataclass(frozen=True)
class Instance:
    """A forecaster's name.

    ``exclusive``: no other living process can have it, so being fenced can only mean that a transaction timed out.
    """

    name: str
    exclusive: bool
    lock: IO[str] | None = None  # held as long as this object lives

    def transactional_id(self, settings: Settings) -> str:
        """What the brokers fence predecessors by."""
        return f"{settings.forecaster.group_id}-{self.name}"

    @property
    def client_id(self) -> str:
        """What the consumer group knows this forecaster by."""
        return f"{CLIENT_PREFIX}{self.name}"

    def release(self) -> None:
        """Give the name back."""
        if self.lock is not None:
            self.lock.close()


def claim_instance(settings: Settings, name: str | None = None) -> Instance:
    """The name given here or in the settings; else one that is this process's own until it ends.

    Raises:
        StreamgruError: the folder for the locks cannot be written.
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
            return Instance(f"{_host(folder)}-{slot}", exclusive=True, lock=lock)
    except OSError as error:
        raise StreamgruError(
            f"cannot claim a name for this forecaster in {folder}: {error.strerror}; give it one with --instance NAME"
        ) from error
    raise StreamgruError(f"all {_SLOTS} names in {folder} are taken; give this forecaster one with --instance NAME")


def _host(folder: Path) -> str:
    # Two homes on one host have slots of their own, so the name must tell them apart.
    return f"{socket.gethostname()}-{zlib.crc32(str(folder).encode()):08x}"
