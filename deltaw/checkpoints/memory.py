"""Tensors that are in memory already: an `nn.Module`, or a state dict."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltaw.checkpoints.checkpoint import Checkpoint
from deltaw.documents import Document
from deltaw.errors import CheckpointError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class MemoryHandle:
    """A tensor that somebody else holds."""

    name: str
    tensor: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> str:
        """The tensor's dtype, by torch's name."""
        return str(self.tensor.dtype).removeprefix("torch.")

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return self.tensor.numel() * self.tensor.element_size()

    @property
    def storage(self) -> Hashable:
        """Address and layout; an empty tensor (address 0) is tied to nothing."""
        t = self.tensor
        address = t.data_ptr() if t.numel() and t.device.type != "meta" else self.name
        return (str(t.device), address, t.dtype, self.shape, tuple(t.stride()))

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """The tensor (not a copy if it is on the CPU), or some of its rows.

        Raises:
            CheckpointError: The tensor has no data (it is on the meta device).
        """
        if self.tensor.device.type == "meta":
            raise CheckpointError(f"{self.name!r} is on the meta device and has no data; load the weights first")
        t = self.tensor.detach()
        return (t if rows is None else t[rows]).cpu()


def tensor_handles(tensors: Mapping[str, torch.Tensor]) -> dict[str, MemoryHandle]:
    """Handles of named tensors."""
    return {str(name): MemoryHandle(str(name), tensor) for name, tensor in tensors.items()}


def open_memory(source: Any) -> Checkpoint:
    """An `nn.Module` or a mapping of names to tensors as a checkpoint.

    Raises:
        CheckpointError: It is neither, or holds something that is no tensor.
    """
    import torch

    config = Document()
    label = type(source).__name__
    if isinstance(source, torch.nn.Module):
        to_dict = getattr(getattr(source, "config", None), "to_dict", None)
        config = Document(to_dict() if to_dict is not None else {}, f"{label}.config")
        source = source.state_dict(keep_vars=True)
        source = {k: v for k, v in source.items() if isinstance(v, torch.Tensor)}
    if not isinstance(source, Mapping):
        raise CheckpointError(f"expected a path, a Hub id, an nn.Module or a state dict; found {label}")
    for name, value in source.items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f"state dict: {name!r} is a {type(value).__name__}; expected a tensor")
    return Checkpoint(f"<{label}>", "memory", tensor_handles(source), config)
