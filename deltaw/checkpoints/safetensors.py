"""safetensors files (https://github.com/huggingface/safetensors): a JSON header, then raw row-major bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import NamedTuple

from deltaw.checkpoints.kinds import regular
from deltaw.checkpoints.remote.file import RemoteFile
from deltaw.checkpoints.stored import StoredHandle
from deltaw.checkpoints.unread import UnreadHandle
from deltaw.documents import Document
from deltaw.errors import CheckpointError
from deltaw.types import Handle, Reason

SUFFIX = ".safetensors"
MAX_HEADER = 100_000_000  # bytes, as the library has it
MAX_SIZE = 2**63

# dtype in the header → (torch's name, bytes per element)
DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "U16": ("uint16", 2),
    "U32": ("uint32", 4),
    "U64": ("uint64", 8),
    "BOOL": ("bool", 1),
    "C64": ("complex64", 8),
}
# Bits of an element; the last three are known to the format and to no tensor of torch.
BITS = {name: 8 * size for name, (_, size) in DTYPES.items()} | {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


class HeaderError(ValueError):
    """A header that is not what the format says."""


def read_header(path: Path | RemoteFile) -> tuple[dict[str, Handle], tuple[str, ...]]:
    """The tensors of one file, by name in stored order, and what a reader should know of the file.

    A tensor of a dtype that is not known is there without being read; every other one lies within the file.

    Raises:
        CheckpointError: The file is not whole safetensors.
        OSError: It cannot be read.
    """
    size = _size(path)
    try:
        header, start = _header(path, size)
        entries = _entries(header, start, size)
    except HeaderError as e:
        raise CheckpointError(
            f"{path}: not a complete safetensors file ({e}; {size:,} bytes); copy or download it again"
        ) from e
    extra = size - start - (entries[-1].end if entries else 0)
    notes = (f"{path.name}: {extra:,} bytes behind the last tensor were ignored",) if extra else ()
    tensors = {entry.name: entry.handle(path, start) for entry in entries}
    return tensors | _aliases(header.get("__metadata__"), tensors), notes


def _aliases(metadata: object, tensors: Mapping[str, Handle]) -> dict[str, Handle]:
    """The other names of shared tensors: `save_model` stores each once, and its other names as metadata."""
    out: dict[str, Handle] = {}
    for name, of in metadata.items() if isinstance(metadata, dict) else ():
        handle = tensors.get(of) if isinstance(of, str) and name not in tensors else None
        if isinstance(handle, StoredHandle):
            out[name] = replace(handle, name=name)
    return out


def read_metadata(path: Path | RemoteFile) -> Document:
    """The texts of a header's `__metadata__`; empty where there are none.

    Its values are typed when they are asked for: the library would refuse the whole file for one that is no text.

    Raises:
        CheckpointError: The header is not what the format says, or its entry is no object.
        OSError: The file cannot be read.
    """
    try:
        header, _ = _header(path, _size(path))
    except HeaderError as e:
        raise CheckpointError(f"{path}: not a complete safetensors file ({e}); copy or download it again") from e
    return Document(header, str(path)).inner("__metadata__")


class HeaderEntry(NamedTuple):
    """One tensor of a header: where its bytes begin and end, by which it is sorted, its name, dtype and shape."""

    begin: int
    end: int
    name: str
    dtype: str
    shape: tuple[int, ...]

    def handle(self, path: Path | RemoteFile, start: int) -> Handle:
        """The handle of a tensor in a file whose bytes begin at `start`."""
        if self.dtype not in DTYPES:
            detail = f"a dtype that is not known here, in {path.name}; save it in another"
            nbytes = self.end - self.begin
            return UnreadHandle(self.name, self.shape, self.dtype, nbytes, Reason.UNSUPPORTED, self.dtype, detail)
        dtype, itemsize = DTYPES[self.dtype]
        return StoredHandle(self.name, self.shape, dtype, path, start + self.begin, itemsize)


# A header is foreign JSON until `_entry` has made a `HeaderEntry` of each value: 100,000 of them, without a copy.
def _entries(header: Mapping[str, object], start: int, size: int) -> list[HeaderEntry]:
    """The tensors in stored order; the first begins at `start` in a file of `size` bytes.

    Raises:
        HeaderError: They overlap, leave holes, or leave the file.
    """
    entries = [_entry(name, about) for name, about in header.items() if name != "__metadata__"]
    entries.sort()
    end = 0
    for entry in entries:
        if entry.begin != end:
            what = "shares bytes with another tensor" if entry.begin < end else "does not follow the one before it"
            raise HeaderError(f"{entry.name[:80]!r} {what}")
        end = entry.end
    if start + end > size:
        raise HeaderError(f"it ends {start + end - size:,} bytes before its last tensor does")
    return entries


def _size(path: Path | RemoteFile) -> int:
    return path.size if isinstance(path, RemoteFile) else regular(path)


def _bytes(path: Path | RemoteFile, offset: int, count: int) -> bytes:
    if isinstance(path, RemoteFile):
        return path.read(offset, count)
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(count)


def _header(path: Path | RemoteFile, size: int) -> tuple[dict[str, object], int]:
    first = _bytes(path, 0, 8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > min(size - 8, MAX_HEADER):
        said = "it is empty" if not first else f"its header would have {length:,} bytes"
        raise HeaderError(said if len(first) in {0, 8} else "it is too short")
    text = _bytes(path, 8, length)
    try:
        header = json.loads(text, object_pairs_hook=_no_name_twice)
    except HeaderError:
        raise
    except (ValueError, RecursionError) as e:
        raise HeaderError(f"its header is not JSON ({type(e).__name__})") from e
    if not isinstance(header, dict):
        raise HeaderError("its header is not a JSON object")
    return header, 8 + length


def _no_name_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise HeaderError("a name is twice in its header")
    return out


def _entry(name: str, about: object) -> HeaderEntry:
    if not isinstance(about, dict):
        raise HeaderError(f"{name[:80]!r} is described by no object")
    dtype, shape, offsets = about.get("dtype"), _sizes(about.get("shape")), _sizes(about.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise HeaderError(f"{name[:80]!r} has no dtype, shape and data_offsets of the right kind")
    begin, end = offsets
    bits = BITS.get(dtype)
    if end < begin or (bits is not None and end - begin != -(-prod(shape) * bits // 8)):
        raise HeaderError(f"{name[:80]!r} of {dtype} {list(shape)} has {end - begin:,} bytes")
    return HeaderEntry(begin, end, name, dtype, shape)


def _sizes(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list) or len(value) > 64:
        return None
    for n in value:
        if type(n) is not int or not 0 <= n < MAX_SIZE:  # true and false are integers, too, for isinstance
            return None
    return tuple(value)
