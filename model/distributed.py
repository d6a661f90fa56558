"""Training in several processes, one for each GPU, on one machine or more, as ``torchrun`` starts them.

The process of rank 0 leads: it runs the whole program, and sends the arguments of each training to the followers. A
follower takes its share of each update's lanes. Gradients are added up over the processes before each update, so all
processes keep equal weights, and the result is that of one process with all the lanes.

States of a follower::

    waiting --arguments--> training --end or error--> waiting
    waiting --dismissed--> ended, without connections

If a process dies, ``torchrun`` ends the other processes on the same machine.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class DeviceError(ValueError):
    """The device of a training cannot be used, in this process or in another one of the training."""


# Followers wait for the leader's back-test and registration. Sums over the GPUs have the shorter limit of PyTorch.
_LONGEST_WAIT: Final = timedelta(days=7)


class Ranks:
    """The processes of one training; a training without ``torchrun`` is rank 0 of 1."""

    def __init__(self, rank: int = 0, size: int = 1, host_group: Any = None) -> None:
        self.rank = rank
        self.size = size
        self._host_group = host_group  # for objects; a group of GPUs would gather them on the GPUs

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes; the sums have equal bits in all of them."""
        if self.size == 1:
            return
        together = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(together)
        parts = torch.split(together, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def agree(self, value: T) -> T:
        """The leader's value."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._host_group)
        return box[0]

    def collect(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self._host_group)
        return found

    def together(self, work: Callable[[], T]) -> T:
        """The result of ``work``, which all processes do.

        Raises:
            ValueError: it failed in one of the processes; all of them raise the error.
        """
        try:
            result, message = work(), None
        except ValueError as error:
            if self.size == 1:
                raise
            result, message = None, str(error)
        for failure in self.collect(message):
            if failure is not None:
                raise ValueError(failure)
        assert result is not None  # otherwise there is a message
        return result


def started_by_torchrun() -> bool:
    """Whether this is one of several processes that ``torchrun`` started."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def follows() -> bool:
    """Whether this process follows another one."""
    return started_by_torchrun() and int(os.environ["RANK"]) > 0


def processes_on_this_machine() -> int:
    """How many processes of the training share this machine's cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if started_by_torchrun() else 1


@cache
def join() -> Ranks:
    """This process's place among those that ``torchrun`` started; alone without it."""
    if not started_by_torchrun():
        return Ranks()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend)
    return Ranks(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo", timeout=_LONGEST_WAIT))


def dismiss() -> None:
    """Let the followers end, if there are any; the leader calls it at the end of its program."""
    if started_by_torchrun():
        join().agree(None)
        leave()


def leave() -> None:
    """Close this process's connections to the other processes; the next ``join`` would open them again.

    If a process exits with open connections, their threads may still run while the interpreter is torn down, and the
    process may end with SIGABRT. ``torchrun`` then reports a failure after a training that succeeded.
    """
    join.cache_clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """The device of this process: GPUs of a machine go to its processes in order.

    Raises:
        DeviceError: the device names one GPU for all processes, or this machine has fewer GPUs than processes.
    """
    if not started_by_torchrun() or device.type != "cuda":
        return device
    if device.index is not None:
        raise DeviceError(f"device {device} names one GPU, but torchrun started several processes; use cuda or auto")
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= count:
        raise DeviceError(
            f"torchrun started more than {count} processes on a machine with {count} GPUs; set --nproc-per-node {count}"
        )
    return torch.device("cuda", number)
