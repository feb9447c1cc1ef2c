"""Checkpoints of torch.distributed.checkpoint (`.metadata` and `*.distcp`: FSDP2, torchtitan, verl), tensor by tensor.

`.metadata` is a pickle that says of each tensor its size, its dtype and which pieces of it lie where; it is read by the
machine of `pickles`, which runs nothing. Each piece is an archive of `torch.save` within a `.distcp` file, and is
opened when its tensor is read. There is no process group, and no file is read whole.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw.checkpoints.kinds import DISTCP_SUFFIX
from deltaw.checkpoints.parts import inside
from deltaw.checkpoints.pickles import read_piece
from deltaw.checkpoints.pickles.archive import MAX_PICKLE
from deltaw.checkpoints.pickles.machine import Inert, Machine, PickleError, RefusalError
from deltaw.checkpoints.pickles.mapping import find_weights
from deltaw.checkpoints.pickles.rebuild import ITEMSIZE, RawTensor, Rebuilder, Storage, dtype_name
from deltaw.checkpoints.remote import remote_at
from deltaw.checkpoints.unread import UnreadHandle
from deltaw.errors import CheckpointError
from deltaw.types import Handle, Reason, times

if TYPE_CHECKING:
    import torch

METADATA = ".metadata"
MOST_PIECES = 4096  # of one tensor: more ranks than any job has had for one
DEEPEST = 32  # parts of a tensor's path
LARGEST = 2**62
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """A box of a tensor, and where its archive lies."""

    offsets: Sizes
    sizes: Sizes
    path: Path
    start: int
    length: int


@dataclass(frozen=True)
class PiecedHandle:
    """A tensor that lies in pieces; a `Handle`."""

    name: str
    shape: Sizes
    dtype: str
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        """The size of the tensor in bytes."""
        return prod(self.shape) * ITEMSIZE[self.dtype]

    @property
    def storage(self) -> Hashable:
        """Its pieces; an empty tensor is tied to nothing."""
        return (self.pieces if self.nbytes else self.name, self.dtype, self.shape)

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """The tensor put together, or some rows of it, on the CPU.

        Raises:
            CheckpointError: A piece cannot be read, or is not what `.metadata` says.
        """
        import torch

        start, stop, step = (rows or slice(None)).indices(self.shape[0] if self.shape else 1)
        assert step == 1, "rows are read in blocks"
        shape = (max(0, stop - start), *self.shape[1:]) if self.shape else ()
        out = torch.empty(shape, dtype=getattr(torch, self.dtype))
        for piece in self.pieces:
            if not self.shape:
                return self._part(piece, None)
            first = piece.offsets[0]
            low, high = max(start, first), min(stop, first + piece.sizes[0])
            if low < high:
                place = [slice(o, o + n) for o, n in zip(piece.offsets[1:], piece.sizes[1:], strict=True)]
                out[(slice(low - start, high - start), *place)] = self._part(piece, slice(low - first, high - first))
        return out

    def _part(self, piece: Piece, rows: slice | None) -> torch.Tensor:
        handle = read_piece(self.name, remote_at(piece.path) or piece.path, piece.start, piece.length)
        if (handle.shape, handle.dtype) != (piece.sizes, self.dtype):
            raise CheckpointError(
                f"{piece.path}: its piece of {self.name!r} is {handle.dtype} {times(handle.shape)}, where {METADATA} "
                f"says {self.dtype} {times(piece.sizes)}; copy or save the checkpoint again"
            )
        return handle.read(rows)


def read_distcp(folder: Path, wanted: str = "") -> tuple[dict[str, Handle], tuple[str, ...], tuple[Path, ...]]:
    """The tensors of a directory, what a reader should know of it, and the files that were read.

    Args:
        folder: Where `.metadata` and `*.distcp` lie.
        wanted: The part of the state to take (`ema`); empty for the one that holds the weights.

    Raises:
        CheckpointError: It is incomplete, or its metadata are damaged.
        OSError: It cannot be read.
    """
    path = folder / METADATA
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: {DISTCP_SUFFIX} files without {METADATA}, which says what they hold; copy it, too"
        )
    try:
        state = _state(_loaded(path), "Metadata")
        tensors = _tensors(state, folder)
        weights = find_weights(_nested(tensors, state.get("planner_data")), wanted)
    except RefusalError as e:
        raise CheckpointError(f"{path}: {e}") from e
    except (PickleError, KeyError, TypeError, ValueError, AttributeError) as e:
        raise CheckpointError(f"{path}: not what torch.distributed.checkpoint writes ({e}); copy it again") from e
    found: dict[str, Handle] = {}
    for name, tensor in weights.tensors.items():
        assert isinstance(tensor, RawTensor)
        found[name] = _renamed(tensors[tensor.storage.key], name)
    files = {p.path for handle in found.values() if isinstance(handle, PiecedHandle) for p in handle.pieces}
    return found, tuple(f"{METADATA}: {note}" for note in weights.notes), (path, *sorted(files))


def _loaded(path: Path) -> object:
    size = path.stat().st_size
    if size > MAX_PICKLE:
        raise PickleError(f"it has {size:,} bytes")
    maker = Rebuilder(size, lambda *_: None)
    with path.open("rb") as file:
        return Machine(maker.call, maker.build).run(file)


def _state(value: object, kind: str) -> Mapping[object, object]:  # whatever a pickle holds
    """The fields of an object of torch.distributed.checkpoint.

    Raises:
        PickleError: It is something else.
    """
    if not isinstance(value, Inert) or not value.name.endswith(f".{kind}") or not isinstance(value.state, dict):
        raise PickleError(f"no {kind} where one is expected")
    return value.state


def _tensors(state: Mapping[object, object], folder: Path) -> dict[str, Handle]:
    kept = _mapping(state["state_dict_metadata"])
    places = _places(_mapping(state["storage_data"]), folder)
    out: dict[str, Handle] = {}
    for name, value in kept.items():
        if isinstance(name, str) and isinstance(value, Inert) and value.name.endswith(".TensorStorageMetadata"):
            out[name] = _tensor(name, _state(value, "TensorStorageMetadata"), places)
    return out


def _mapping(value: object) -> Mapping[object, object]:  # whatever a pickle holds
    if not isinstance(value, dict):
        raise PickleError("a part of it is not a mapping")
    return value


Place = tuple[Path, int, int, str]  # the file, where in it, how many bytes, and what was done to them


def _places(stored: Mapping[object, object], folder: Path) -> dict[tuple[str, Sizes], Place]:
    """Where each piece lies, by the tensor's name and the piece's offsets."""
    out: dict[tuple[str, Sizes], Place] = {}
    for index, info in stored.items():
        own = _state(index.args if isinstance(index, Inert) else index, "MetadataIndex")
        about = _state(info, "_StorageInfo")
        start, length, changed = about["offset"], about["length"], about.get("transform_descriptors")
        offset = own.get("offset")
        if isinstance(start, int) and isinstance(length, int) and start >= 0 and length >= 0:
            path = inside(folder, about["relative_path"], folder / METADATA)
            key = (str(own["fqn"]), () if offset is None else _sizes(offset))
            out[key] = (path, start, length, ", ".join(map(str, changed)) if isinstance(changed, (list, tuple)) else "")
    return out


def _tensor(name: str, about: Mapping[object, object], places: Mapping[tuple[str, Sizes], Place]) -> Handle:
    shape, properties = _sizes(about["size"]), about["properties"]
    given = properties.state if isinstance(properties, Inert) else None
    dtype = dtype_name(given[0] if isinstance(given, tuple) else _mapping(given)["dtype"])
    if dtype not in ITEMSIZE:
        return UnreadHandle(name, shape, dtype, 0, Reason.UNSUPPORTED, dtype, "a dtype not known here")
    pieces = []
    for chunk in _pieces(about["chunks"]):
        offsets, sizes = _sizes(chunk["offsets"]), _sizes(chunk["sizes"])
        place = places.get((name, offsets))
        if place is None:
            return _failed(name, shape, dtype, f"{METADATA} does not say where its piece at {times(offsets)} lies")
        path, start, length, changed = place
        if changed:
            detail = f"its pieces are changed ({changed[:80]}); load and save it without extensions"
            return UnreadHandle(name, shape, dtype, 0, Reason.UNSUPPORTED, "transformed pieces", detail)
        size = _size(path)
        if size is None or start + length > size:
            gone = "is not there" if size is None else "ends before its piece does"
            return _failed(name, shape, dtype, f"{path.name} {gone}; copy the checkpoint whole")
        pieces.append(Piece(offsets, sizes, path, start, length))
    if not _fits(shape, pieces):
        return _failed(name, shape, dtype, "its pieces do not make the whole tensor")
    return PiecedHandle(name, shape, dtype, tuple(pieces))


def _size(path: Path) -> int | None:
    """Of a file, here or elsewhere; None where there is none."""
    elsewhere = remote_at(path)
    if elsewhere is not None:
        return elsewhere.size
    return path.stat().st_size if path.is_file() else None


def _pieces(chunks: object) -> Iterator[Mapping[object, object]]:  # whatever a pickle holds
    if not isinstance(chunks, list) or len(chunks) > MOST_PIECES:
        raise PickleError(f"a tensor in more than {MOST_PIECES:,} pieces, or in none")
    for chunk in chunks:
        yield _state(chunk, "ChunkStorageMetadata")


def _fits(shape: Sizes, pieces: list[Piece]) -> bool:
    """Whether boxes lie within a tensor, do not overlap, and fill it."""
    import numpy as np

    if any(len(p.offsets) != len(shape) or len(p.sizes) != len(shape) for p in pieces):
        return False
    if not shape:
        return len(pieces) == 1
    low = np.array([p.offsets for p in pieces], dtype=np.int64).reshape(-1, len(shape))
    high = low + np.array([p.sizes for p in pieces], dtype=np.int64).reshape(-1, len(shape))
    if (high > np.array(shape)).any() or sum(prod(p.sizes) for p in pieces) != prod(shape):
        return False
    meet = np.ones((len(pieces), len(pieces)), dtype=bool)
    for d in range(len(shape)):
        meet &= np.maximum.outer(low[:, d], low[:, d]) < np.minimum.outer(high[:, d], high[:, d])
    np.fill_diagonal(meet, val=False)
    return not meet.any()


def _failed(name: str, shape: Sizes, dtype: str, why: str) -> UnreadHandle:
    return UnreadHandle(name, shape, dtype, 0, Reason.FAILED, why)


def _sizes(value: object) -> Sizes:
    """A size; torch's come as tuples.

    Raises:
        PickleError: It is none.
    """
    if not isinstance(value, (tuple, list)) or not all(type(n) is int and 0 <= n < LARGEST for n in value):
        raise PickleError("a size that is none")
    return tuple(value)


# A state dict as it was saved, foreign: nested dicts, lists and tensors.
def _nested(tensors: Mapping[str, Handle], paths: object) -> dict[str, object]:
    """The state as it was before its names were made flat, with a description in each tensor's place.

    Raises:
        PickleError: A name is that of a tensor and of a mapping.
    """
    known = paths if isinstance(paths, dict) else {}
    out: dict[str, object] = {}  # see above
    for name, handle in tensors.items():
        path = known.get(name)
        steps = [str(step) for step in path] if isinstance(path, (tuple, list)) and 0 < len(path) <= DEEPEST else [name]
        node = out
        for step in steps[:-1]:
            inner = node.setdefault(step, {})
            if not isinstance(inner, dict):
                raise PickleError(f"{step[:80]!r} is a tensor and a mapping")
            node = inner
        storage = Storage(handle.dtype, name, prod(handle.shape))
        node[steps[-1]] = RawTensor(storage, handle.dtype, 0, handle.shape, (1,) * len(handle.shape))
    return out


def _renamed(handle: Handle, name: str) -> Handle:
    assert isinstance(handle, (PiecedHandle, UnreadHandle))
    return replace(handle, name=name)
