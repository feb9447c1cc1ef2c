"""torch's files before 1.6: five pickles, then each storage as its number of elements and its bytes.

A magic number, a protocol version, the system's sizes and byte order, the object, the keys of the storages in order.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from deltaw.checkpoints.pickles.arrays import Array
from deltaw.checkpoints.pickles.machine import Inert, Machine, PickleError, RefusalError
from deltaw.checkpoints.pickles.rebuild import (
    ITEMSIZE,
    Nested,
    RawTensor,
    Rebuilder,
    Refused,
    Storage,
)

MAGIC = 0x1950A86A20F9469CFC6C
NUMEL_BYTES = 8


@dataclass(frozen=True)
class Legacy:
    """What such a file describes, and where each storage lies: offset and bytes, by its key."""

    content: object
    places: dict[str, tuple[int, int]]
    end: int

    def place(self, storage: Storage) -> tuple[int, int]:
        """Where a storage's bytes lie.

        Raises:
            PickleError: The file has no such storage.
        """
        if storage.key not in self.places:
            raise PickleError(f"its storage {storage.key!r} is not in the file")
        return self.places[storage.key]


class Stream:
    """A file for `pickletools`: no read asks for more than the file still has, so that none allocates it."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        self.tell = file.tell

    def read(self, count: int = -1) -> bytes:
        """At most `count` bytes."""
        left = max(0, self.size - self.file.tell()) if count > 64 or count < 0 else count
        return self.file.read(left if count < 0 else min(count, left))

    def readline(self) -> bytes:
        """A line; no opcode has one longer than its file."""
        return self.file.readline()


def read_legacy(path: Path) -> Legacy:
    """Read a file of the old form; the storages are only located.

    Raises:
        PickleError: It is malformed or would attack whoever loads it.
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        return _read(Stream(file, size), size, 0)


def read_nested(data: bytes, depth: int) -> object:
    """The tensor or storage in the bytes of a file within a pickle.

    Raises:
        PickleError: It is malformed.
        RefusalError: It is an archive.
    """
    if data[:2] == b"PK":
        raise RefusalError("an archive within a pickle; load it with torch and save it with torch.save")
    found = _read(io.BytesIO(data), len(data), depth)
    nested = Nested({key: data[start : start + length] for key, (start, length) in found.places.items()})
    content = found.content
    if isinstance(content, RawTensor):
        storage = content.storage
        held = Storage(storage.dtype, storage.key, storage.numel, storage.start, nested)
        return RawTensor(held, content.dtype, content.offset, content.shape, content.strides, content.negated)
    if isinstance(content, Storage):
        return Storage(content.dtype, content.key, content.numel, content.start, nested)
    return content if isinstance(content, (Array, Refused)) else Inert("torch.load", content)


def _read(file: BinaryIO | Stream, size: int, depth: int) -> Legacy:
    sizes: dict[str, int] = {}

    def call(name: str, args: object) -> object:
        made = maker.call(name, args)
        if name == "persistent" and isinstance(made, Storage):
            sizes.setdefault(made.key, ITEMSIZE[made.dtype])
        return made

    maker = Rebuilder(size, read_nested, depth)
    machine = Machine(call, maker.build)
    first = machine.run(file)  # type: ignore[arg-type]
    if first != MAGIC:  # a pickle, but none of torch's: `pickle.dump`
        return Legacy(first, {}, file.tell())
    machine.run(file)  # type: ignore[arg-type]
    system = machine.run(file)  # type: ignore[arg-type]
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise RefusalError("its numbers are big-endian; load it with torch and save it again on this machine")
    content = machine.run(file)  # type: ignore[arg-type]
    keys = machine.run(file)  # type: ignore[arg-type]
    if not isinstance(keys, list):
        raise PickleError("no list of storages where one was expected")
    places: dict[str, tuple[int, int]] = {}
    at = file.tell()
    for key in keys:
        name = str(key)
        file_numel = _at(file, at) if at < size else None
        if name not in sizes:
            raise PickleError(f"a storage {name!r} of no known type")
        if file_numel is None:
            break  # behind the end of the file: whoever needs it is told
        length = file_numel * sizes[name]
        start = at + NUMEL_BYTES
        places[name] = (start, max(0, min(length, size - start)))
        at = start + length
    return Legacy(content, places, min(at, size))


def _at(file: BinaryIO | Stream, offset: int) -> int | None:
    # The number of elements that stands before a storage; None behind the end of the file.
    inner = file.file if isinstance(file, Stream) else file
    inner.seek(offset)
    data = inner.read(NUMEL_BYTES)
    numel = int.from_bytes(data, "little", signed=True)
    return numel if len(data) == NUMEL_BYTES and 0 <= numel < 2**62 else None
