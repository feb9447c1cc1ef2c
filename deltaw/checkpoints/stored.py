"""A tensor that lies in a file at a known offset, read with plain reads, or by ranges where the file lies elsewhere.

Not memory-mapped: touching a page behind the end of a file that was truncated meanwhile kills the process
(SIGBUS), where a short read is an error that names the tensor. Plain reads are also no slower.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw.checkpoints.remote.file import RemoteFile
from deltaw.errors import CheckpointError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class StoredHandle:
    """A tensor in a file; `strides` (in elements) are None where it is stored row by row."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    path: Path | RemoteFile
    offset: int
    itemsize: int
    strides: tuple[int, ...] | None = None
    negated: bool = False  # a lazily negated view: the stored numbers with the other sign

    @property
    def nbytes(self) -> int:
        """The size of the tensor in bytes."""
        return prod(self.shape) * self.itemsize

    @cached_property
    def storage(self) -> Hashable:
        """File, offset and layout; an empty tensor is tied to nothing."""
        place: Hashable = self.name if 0 in self.shape else self.offset
        return (str(self.path), place, self.dtype, self.shape, self.strides, self.negated)

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """The tensor as stored, or some rows of it, on the CPU.

        Raises:
            CheckpointError: The file is gone, or ends before the tensor does.
        """
        read = self._read(rows)
        return -read if self.negated else read

    def _read(self, rows: slice | None) -> torch.Tensor:
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        if self.strides is not None:
            span = 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)) if self.nbytes else 0
            flat = self._bytes(self.offset, span * self.itemsize).view(dtype)
            whole = torch.as_strided(flat, self.shape, self.strides)
            return whole if rows is None else whole[rows]
        if rows is None or not self.shape:
            return self._bytes(self.offset, self.nbytes).view(dtype).reshape(self.shape)
        start, stop, step = rows.indices(self.shape[0])
        assert step == 1, "rows are read in blocks"
        per_row = self.nbytes // self.shape[0] if self.shape[0] else 0
        count = max(0, stop - start)
        data = self._bytes(self.offset + start * per_row, count * per_row)
        return data.view(dtype).reshape((count, *self.shape[1:]))

    def _bytes(self, offset: int, count: int) -> torch.Tensor:
        import torch

        from deltaw.tensors.memory import empty

        out = empty((count,), torch.uint8)
        view = out.numpy().data
        if isinstance(self.path, RemoteFile):
            self.path.fill(offset, view)
            return out
        done = 0
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(offset)
                while done < count:
                    got = file.readinto(view[done:])
                    if not got:
                        break
                    done += got
        except OSError as e:
            raise CheckpointError(f"{self.path}: {self.name!r} cannot be read ({e.strerror or e})") from e
        if done < count:
            raise CheckpointError(
                f"{self.path}: {self.name!r} is truncated, the file ends {count - done} bytes before the tensor does; "
                "copy or download it again"
            )
        return out
