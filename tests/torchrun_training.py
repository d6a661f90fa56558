"""``torchrun -m tests.torchrun_training FOLDER``: a small training, whose losses and weights go to ``FOLDER``.

The names of the modules that it imported go there, too. With ``--stopped OTHER`` another training follows, which has
its checkpoint in ``OTHER`` and is ended by an error after its first epoch.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from model import distributed
from model.sequences import Split
from model.training import EpochReport, TrainingOptions, follow, train
from tests.series import CONFIG, HOUR_US, noisy_days

SPLIT = Split(300 * HOUR_US, 400 * HOUR_US)
CHECKPOINT = "checkpoint.pt"
# Dropout differs between the processes of a training and the only process of another one.
OPTIONS = TrainingOptions(
    hidden_size=8, epochs=3, updates_per_epoch=12, batch_lanes=7, chunk_steps=24, dropout=0.0, device="cpu", threads=1
)


def main() -> None:
    """Run this process's part of the trainings; an open process group at the end is an error."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stopped", type=Path, help="folder of a training that stops in its second epoch")
    parser.add_argument("--too-short", action="store_true", help="train on data without a validation part first")
    options = parser.parse_args()
    if distributed.follows():
        follow()
    else:
        _lead(options)
    if dist.is_initialized():
        sys.exit(f"process {dist.get_rank()} is still in the process group")


def _lead(options: argparse.Namespace) -> None:
    """Run the trainings and write their results."""
    if options.too_short:
        try:
            train(CONFIG, OPTIONS, noisy_days(), Split(400 * HOUR_US, 400 * HOUR_US))
        except ValueError as error:
            (options.folder / "refusal").write_text(str(error))
    result = train(CONFIG, OPTIONS, noisy_days(), SPLIT, checkpoint=options.folder / CHECKPOINT)
    losses = [(epoch.train_loss, epoch.validation_loss) for epoch in result.epochs]
    (options.folder / "losses.json").write_text(json.dumps(losses))
    torch.save(result.forecaster.state_dict(), options.folder / "weights.pt")
    (options.folder / "modules").write_text("\n".join(sys.modules))
    if options.stopped:
        train(CONFIG, OPTIONS, noisy_days(), SPLIT, report=_stop, checkpoint=options.stopped / CHECKPOINT)
    distributed.dismiss()


def _stop(epoch: EpochReport) -> None:
    if epoch.epoch > 1:
        raise KeyboardInterrupt


if __name__ == "__main__":
    main()
