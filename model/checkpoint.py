"""A training on disk, so that one that was killed goes on where its last epoch ended."""

import hashlib
import logging
import os
import pickle
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .forecaster import Forecaster
from .sequences import Sequences

logger = logging.getLogger("streamgru.training")


def fingerprint(sequences: Sequences, initial: Forecaster | None, *others: str) -> str:
    """Tells trainings apart: by their data, the weights they begin from, and whatever else shapes them."""
    digest = hashlib.blake2b(digest_size=16)
    for array in (sequences.starts, sequences.timestamp_us, sequences.values, sequences.reset):
        digest.update(array.tobytes())
    for weights in initial.state_dict().values() if initial else ():
        digest.update(weights.cpu().numpy().tobytes())
    digest.update("\0".join([*sequences.sensors, *others]).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """The file of one training, which ``key`` tells from any other."""

    path: Path
    key: str

    def read(self) -> dict[str, Any] | None:
        """What was written last; None where nothing was, or it is another training's, or damaged."""
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            found: dict[str, Any] | None = content["content"] if content["key"] == self.key else None
            return found
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
            logger.warning("training begins anew: its checkpoint %s cannot be read: %s", self.path, error)
            return None

    def write(self, content: dict[str, Any]) -> None:
        """Puts ``content`` (tensors, numbers, texts, and containers of them) in the place of what was written last.

        Where that cannot be done, training goes on without.
        """
        draft = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(prefix=f".{self.path.name}-", dir=self.path.parent)
            with os.fdopen(handle, "wb") as file:
                torch.save({"key": self.key, "content": content}, file)
            Path(draft).replace(self.path)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError where the disk is full
            logger.warning("no checkpoint can be kept at %s, so training would begin anew: %s", self.path, error)
            if draft is not None:
                Path(draft).unlink(missing_ok=True)
