"""Checkpoints of a training: after a kill, the training continues after its last complete epoch."""

import hashlib
import logging
import os
import pickle
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from .forecaster import Forecaster
from .sequences import Sequences

# Raised with each change of a checkpoint's content; one of another format is discarded.
_FORMAT: Final = 2

logger = logging.getLogger("streamgru.training")


def fingerprint(sequences: Sequences, initial: Forecaster | None, *settings: str) -> str:
    """A hash of a training's data, initial weights and ``settings`` (options, split, device)."""
    digest = hashlib.blake2b(digest_size=16)
    for array in (sequences.starts, sequences.timestamp_us, sequences.values, sequences.reset):
        digest.update(np.ascontiguousarray(array).data)  # `tobytes` would copy it
    if sequences.outlooks is not None and sequences.outlook is not None:
        known = sequences.outlooks
        for each in (sequences.outlook, known.issued_us, known.first_us, known.values):
            digest.update(np.ascontiguousarray(each).data)
    for weights in initial.state_dict().values() if initial else ():
        digest.update(weights.cpu().numpy().tobytes())
    digest.update("\0".join([*sequences.sensors, *settings]).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """The file of one training."""

    path: Path
    key: str  # ``fingerprint`` of the training

    def read(self) -> dict[str, Any] | None:
        """The content written last; None if the file is missing, damaged, or belongs to another training.

        A damaged file is logged, not raised.
        """
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            if content.get("format") != _FORMAT:
                logger.warning(
                    "training starts from scratch: its checkpoint %s was written by another version of streamgru",
                    self.path,
                )
                return None
            found: dict[str, Any] | None = content["content"] if content["key"] == self.key else None
            return found
        except FileNotFoundError:
            return None
        except (
            OSError,
            RuntimeError,
            EOFError,
            KeyError,
            TypeError,
            AttributeError,
            ValueError,
            pickle.UnpicklingError,
        ) as error:
            logger.warning("training starts from scratch: its checkpoint %s cannot be read: %s", self.path, error)
            return None

    def write(self, content: dict[str, Any]) -> None:
        """Replace the content: tensors, numbers, strings, and containers of them.

        A crash leaves the old or the new content. A failure to write is logged, not raised: training continues without
        a checkpoint.
        """
        draft = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(prefix=f".{self.path.name}-", dir=self.path.parent)
            with os.fdopen(handle, "wb") as file:
                torch.save({"format": _FORMAT, "key": self.key, "content": content}, file)
            Path(draft).replace(self.path)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError if the disk is full
            logger.warning("cannot write checkpoint %s; a killed training loses its last epochs: %s", self.path, error)
            if draft is not None:
                Path(draft).unlink(missing_ok=True)
