"""PyTorch pickles, zip and legacy, TorchScript and whole modules: read for their tensors, and never run.

`machine` reads the pickle, `rebuild` knows tensors, `archive` and `legacy` know where their bytes lie, `mapping` which
of them are the weights. Tensors are read from the file when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw.checkpoints.memory import MemoryHandle
from deltaw.checkpoints.pickles import archive, legacy
from deltaw.checkpoints.pickles.arrays import Array
from deltaw.checkpoints.pickles.machine import Inert, PickleError, RefusalError
from deltaw.checkpoints.pickles.mapping import find_weights
from deltaw.checkpoints.pickles.rebuild import ITEMSIZE, RawTensor, Refused, Storage, Tensor
from deltaw.checkpoints.remote.file import Ranges, RemoteFile
from deltaw.checkpoints.stored import StoredHandle
from deltaw.checkpoints.unread import UnreadHandle
from deltaw.errors import CheckpointError
from deltaw.types import Handle, OptionValue, Reason, is_option_value

if TYPE_CHECKING:
    import torch

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
Place = Callable[[Storage], tuple[int, int]]


def read_pickle(path: Path, wanted: str = "") -> tuple[dict[str, Handle], tuple[str, ...]]:
    """The tensors of one file by name, and what was unwrapped or ignored.

    Args:
        path: The file.
        wanted: The mapping to take (`ema`); empty for the one that holds the weights.

    Raises:
        CheckpointError: The file is damaged, would attack whoever loads it, or holds no tensors.
    """
    with _told(path):
        content, place = _content(path)
        weights = find_weights(content, wanted)
        tensors = {name: _handle(name, tensor, path, place) for name, tensor in weights.tensors.items()}
    return tensors, tuple(f"{path.name}: {note}" for note in weights.notes)


def read_attributes(path: Path) -> dict[str, OptionValue]:
    """The attributes of the object that `torch.save` wrote, those that are plain values; it is not built.

    A member of an enumeration is its value. `training_args.bin` of a Trainer is such a file.

    Raises:
        CheckpointError: The file is damaged, would attack whoever loads it, or cannot be read.
    """
    with _told(path):
        content, _ = _content(path)
    state = content.state if isinstance(content, Inert) else None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds no object with attributes; expected what torch.save makes of settings")
    return {str(k): plain for k, v in state.items() if is_option_value(plain := _plain(v))}


def _plain(value: object) -> object:
    if isinstance(value, Inert) and isinstance(value.args, tuple) and len(value.args) == 1:
        return value.args[0]
    return value


def _content(path: Path) -> tuple[object, Place]:
    """What a file's pickle describes, and where its storages lie."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    if zipped:
        opened = archive.open_archive(path)
        return archive.load(opened), opened.place
    found = legacy.read_legacy(path)
    return found.content, found.place


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What is wrong with a pickle, as what is wrong with its file.

    Raises:
        CheckpointError: Instead of a `PickleError`.
    """
    try:
        yield
    except RefusalError as e:
        raise CheckpointError(f"{path}: {e}") from e
    except PickleError as e:
        raise CheckpointError(f"{path}: not a complete PyTorch file ({e}); copy or download it again") from e


def read_piece(name: str, path: Path | RemoteFile, start: int, length: int) -> Handle:
    """A tensor that lies alone in an archive within a file; of one that lies elsewhere, what describes it is read.

    Raises:
        CheckpointError: There is no such archive, or it holds something else.
    """
    try:
        opened = archive.open_archive(path if isinstance(path, Path) else Ranges(path), start, length)
        tensor = archive.load(opened)
        if not isinstance(tensor, RawTensor | Refused | Array):
            raise CheckpointError(f"{path}: no tensor lies at byte {start:,}; copy it again")
        return _handle(name, tensor, path, opened.place)
    except RefusalError as e:
        raise CheckpointError(f"{path}: {e}") from e
    except PickleError as e:
        raise CheckpointError(f"{path}: the piece of {name!r} is not complete ({e}); copy it again") from e
    except OSError as e:
        raise CheckpointError(f"{path}: the piece of {name!r} cannot be read ({e.strerror or e})") from e


def _handle(name: str, tensor: Tensor, path: Path | RemoteFile, place: Place) -> Handle:
    if isinstance(tensor, Refused):
        return UnreadHandle(name, tensor.shape, tensor.dtype, 0, tensor.because, tensor.subject, tensor.detail)
    if isinstance(tensor, Array):
        return _array(name, tensor)
    size = ITEMSIZE.get(tensor.dtype)
    if size is None:
        return UnreadHandle(
            name, tensor.shape, tensor.dtype, 0, Reason.UNSUPPORTED, tensor.dtype, "a dtype not known here"
        )
    nested = tensor.storage.nested
    if nested is not None:
        offset, held = 0, len(nested.data.get(tensor.storage.key, b""))
    else:
        try:
            offset, held = place(tensor.storage)
        except PickleError as e:
            if prod(tensor.shape):
                return UnreadHandle(name, tensor.shape, tensor.dtype, 0, Reason.FAILED, str(e), str(path))
            offset, held = 0, 0
    problem = _problem(tensor, size, held)
    if problem is not None:
        return UnreadHandle(name, tensor.shape, tensor.dtype, 0, *problem, f"in {path}")
    start = offset + (tensor.storage.start * ITEMSIZE[tensor.storage.dtype]) + tensor.offset * size
    strides = None if _row_major(tensor.shape, tensor.strides) else tensor.strides
    if nested is not None:
        return _nested(name, tensor, nested.data.get(tensor.storage.key, b""), start)
    return StoredHandle(name, tensor.shape, tensor.dtype, path, start, size, strides, tensor.negated)


def _problem(tensor: RawTensor, size: int, held: int) -> tuple[Reason, str] | None:
    """Why a tensor does not fit the bytes behind it; None where it does."""
    numbers = prod(tensor.shape)
    if not numbers:
        return None
    declared = (tensor.storage.start + tensor.storage.numel) * ITEMSIZE[tensor.storage.dtype]
    have = min(held, declared) - tensor.storage.start * ITEMSIZE[tensor.storage.dtype]
    span = tensor.offset + 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if span * size > have:
        what = f"its storage holds {max(0, have):,} bytes, and it needs {span * size:,}; copy or download it again"
        return Reason.FAILED, what
    if numbers * size > have:
        return Reason.UNSUPPORTED, f"expanded view ({numbers:,} numbers over {have:,} bytes)"
    return None


def _row_major(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    step = 1
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1 and stride != step:
            return not prod(shape)
        step *= n
    return True


def _nested(name: str, tensor: RawTensor, data: bytes, start: int) -> MemoryHandle:
    import torch

    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8)[start:].clone()
    whole = len(flat) // ITEMSIZE[tensor.dtype] * ITEMSIZE[tensor.dtype]
    view = torch.as_strided(flat[:whole].view(getattr(torch, tensor.dtype)), tensor.shape, tensor.strides)
    return MemoryHandle(name, -view if tensor.negated else view)


def _array(name: str, array: Array) -> Handle:
    size = ITEMSIZE.get(array.dtype, 0)
    if not size:
        return UnreadHandle(
            name, array.shape, "object", 0, Reason.UNSUPPORTED, "array", "a NumPy array of no number type"
        )
    if prod(array.shape) * size != len(array.data):
        what = f"its array holds {len(array.data):,} bytes, and it needs {prod(array.shape) * size:,}"
        return UnreadHandle(name, array.shape, array.dtype, 0, Reason.FAILED, what)
    return MemoryHandle(name, _from_numpy(array))


def _from_numpy(array: Array) -> torch.Tensor:
    import numpy as np
    import torch

    size = ITEMSIZE[array.dtype]
    raw = np.frombuffer(array.data, np.uint8).reshape(-1, size)
    if array.swapped:
        part = size // 2 if array.dtype.startswith("complex") else size
        raw = raw.reshape(-1, part)[:, ::-1].reshape(-1, size)
    flat = torch.from_numpy(raw.copy()).reshape(-1).view(getattr(torch, array.dtype))
    if not array.fortran:
        return flat.reshape(array.shape)
    return flat.reshape(array.shape[::-1]).permute(*reversed(range(len(array.shape))))
