"""The weights of a model that trains, as a checkpoint: read when they are asked for, whole where they are in shards.

Where FSDP2 or ZeRO-3 keeps each matrix in shards, reading one takes every process: process 0 measures and says which
matrix it needs next, the others serve until it is done. So no process ever holds more than one whole matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from deltaw.checkpoints import Checkpoint, without_codes
from deltaw.documents import Document
from deltaw.errors import OptionError

DONE = -1  # instead of the number of a tensor: nothing more is needed
Read = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class LiveHandle:
    """A tensor of a model that trains."""

    name: str
    tensor: torch.Tensor
    whole: Read

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""
        return _shape(self.tensor)

    @property
    def dtype(self) -> str:
        """By torch's name."""
        return str(self.tensor.dtype).removeprefix("torch.")

    @property
    def nbytes(self) -> int:
        """Of the whole tensor."""
        return math.prod(self.shape) * self.tensor.element_size()

    @property
    def storage(self) -> Hashable:
        """Tied weights are one parameter."""
        return id(self.tensor)

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """The whole tensor as it is now, on the CPU, or some of its rows."""
        found = self.whole(self.tensor)
        return (found if rows is None else found[rows]).cpu()


def unwrapped(model: Any) -> Any:
    """The model that DistributedDataParallel, DeepSpeed or `torch.compile` wraps.

    Raises:
        OptionError: FSDP1 wraps it, which has no matrices to gather.
    """
    from torch.nn.parallel import DistributedDataParallel

    while True:
        if type(model).__name__ == "FullyShardedDataParallel":
            raise OptionError(
                "FSDP1 flattens matrices into one vector, and none can be gathered; use FSDP2 (fully_shard)"
            )
        if isinstance(model, DistributedDataParallel) or type(model).__name__ == "DeepSpeedEngine":
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's tensors by name: themselves, not copies."""
    return {name: t for name, t in model.state_dict(keep_vars=True).items() if isinstance(t, torch.Tensor)}


def trained(tensors: Mapping[str, torch.Tensor]) -> int:
    """How many numbers are trained, on all processes together; tied weights once."""
    return sum(math.prod(_shape(t)) for t in {id(t): t for t in tensors.values()}.values() if t.requires_grad)


def in_shards(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether some tensor's whole is spread over processes."""
    return any(_is_dtensor(t) or hasattr(t, "ds_id") for t in tensors.values())


def first_process() -> bool:
    """Whether this process measures and logs."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor; where it is in shards, every process has to call this for the same one."""
    if _is_dtensor(tensor):
        found: torch.Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]
        return found
    if hasattr(tensor, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor.detach()


def checkpoint(tensors: Mapping[str, torch.Tensor], config: Document, read: Read = whole) -> Checkpoint:
    """The tensors as a checkpoint in memory; codes of a quantised base as the weights that they stand for."""
    return without_codes(
        Checkpoint("<model>", "memory", {n: LiveHandle(n, t, read) for n, t in tensors.items()}, config)
    )


def copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU, in the first process only; what is tied stays tied."""
    keep, copies, out = first_process(), {}, {}
    for name, tensor in tensors.items():
        if id(tensor) not in copies:
            found = whole(tensor)
            # A tensor that is on the CPU already would stay the one that is trained.
            copies[id(tensor)] = found.to("cpu", copy=True) if keep else found[:0]
        out[name] = copies[id(tensor)]
    return out if keep else {}


@contextmanager
def served(tensors: Mapping[str, torch.Tensor], sharded: bool) -> Iterator[Read | None]:
    """How tensors are read inside the block; None in processes that only serve, and have done so when it begins.

    Args:
        tensors: All that may be asked for; the same, in the same order, in every process.
        sharded: Whether reading takes all processes.
    """
    if not sharded:
        yield whole
        return
    known = list({id(t): t for t in tensors.values()}.values())
    if dist.get_rank() != 0:
        while (number := _said(DONE)) != DONE:
            whole(known[number])
        yield None
        return
    numbers = {id(t): i for i, t in enumerate(known)}

    def ask(tensor: torch.Tensor) -> torch.Tensor:
        _said(numbers[id(tensor)])
        return whole(tensor)

    try:
        yield ask
    finally:
        _said(DONE)  # after an error, too: the others wait


def _said(number: int) -> int:
    """What process 0 says."""
    said = [number]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(getattr(tensor, "ds_shape", tensor.shape))  # ZeRO-3 leaves an empty tensor in its place


def _is_dtensor(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "full_tensor")
