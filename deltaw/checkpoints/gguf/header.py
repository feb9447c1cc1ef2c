"""The header of a GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): metadata, then tensor infos.

Written by hand, because a file of others is bounded while it is read: no count, length or offset of it is believed
before it is compared with the size of the file.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple

from deltaw.checkpoints.kinds import regular
from deltaw.errors import CheckpointError

Value = str | int | float | bool | tuple[int | float | bool, ...] | None

# ggml's value types: struct's letter of each; 8 is a text and 9 an array.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
ALIGNMENT = 32
LARGEST_ALIGNMENT = 1 << 20
KEPT = 4096  # characters of a text, numbers of an array: longer ones (vocabularies) are passed over
WALKED = 1 << 22  # texts in arrays, metadata and tensors of one file
DIMENSIONS = 8
SMALLEST_PAIR, SMALLEST_INFO = 13, 24  # bytes
MAX_NAME = 1 << 10


class TensorInfo(NamedTuple):
    """One tensor of a header.

    Attributes:
        name: As GGUF calls it.
        shape: With the rows first, as torch has it; GGUF stores it the other way round.
        kind: The number of its ggml type.
        offset: Of its first byte in the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself.

    Attributes:
        path: The file.
        size: Its size in bytes.
        metadata: By key, without long texts and arrays.
        tensors: In stored order.
    """

    path: Path
    size: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]

    def text(self, key: str) -> str:
        """A text; an empty one where there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""

    def whole(self, key: str) -> int:
        """A whole number, or 0; of one number per layer, the one that all have."""
        value = self.metadata.get(key)
        if isinstance(value, tuple) and len(set(value)) == 1:
            value = value[0]
        return value if isinstance(value, int) and not isinstance(value, bool) else 0

    def number(self, key: str) -> float | None:
        """A number, or None."""
        value = self.metadata.get(key)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


class DamagedError(ValueError):
    """A header that is not what the format says."""


def read_header(path: Path) -> Header:
    """The header of one file.

    Raises:
        CheckpointError: It is damaged, of a version that is not read, or says what the file cannot hold.
        OSError: It cannot be read.
    """
    size = regular(path)
    try:
        with path.open("rb") as file:
            return _Parser(file, path, size).header()
    except (DamagedError, UnicodeDecodeError) as e:
        what = e if isinstance(e, DamagedError) else "a name that is no UTF-8"
        raise CheckpointError(
            f"{path}: not a complete GGUF file ({what}; {size:,} bytes); copy or download it again"
        ) from e


class _Parser:
    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self.file, self.path, self.size = file, path, size
        self.at = 0
        self.walked = 0

    def header(self) -> Header:
        """Everything before the tensors.

        Raises:
            CheckpointError: It is of a version that is not read.
            DamagedError: It is damaged.
        """
        magic, version = self._take(4), self._number("I")
        if magic != b"GGUF":
            raise DamagedError(f"it begins with {magic!r}")
        if version not in {2, 3}:
            big = int.from_bytes(version.to_bytes(4, "little"), "big") in {2, 3}
            raise CheckpointError(
                f"{self.path}: GGUF {'in big-endian order' if big else f'of version {version}'}, which is not read; "
                "convert the original checkpoint again"
            )
        count, pairs = self._number("Q"), self._number("Q")
        if count * SMALLEST_INFO + pairs * SMALLEST_PAIR > self.size or count + pairs > WALKED:
            raise DamagedError(f"it says that it holds {count:,} tensors and {pairs:,} settings")
        metadata: dict[str, Value] = {}
        for _ in range(pairs):
            key = self._name()
            metadata[key] = self._value(self._number("I"))
        infos = [self._info() for _ in range(count)]
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= LARGEST_ALIGNMENT or alignment & (alignment - 1):
            raise DamagedError(f"an alignment of {alignment!r}")
        start = -(-self.at // alignment) * alignment
        names = [info.name for info in infos]
        if len(set(names)) < len(names):
            twice = next(n for i, n in enumerate(names) if n in names[:i])
            raise DamagedError(f"the tensor {twice[:80]!r} twice")
        placed = tuple(info._replace(offset=start + info.offset) for info in infos)
        return Header(self.path, self.size, metadata, placed)

    def _take(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise DamagedError(f"{count:,} bytes are missing from byte {self.at:,} on")
        self.at += count
        found = self.file.read(count)
        if len(found) < count:
            raise DamagedError("the file ends within its header")
        return found

    def _skip(self, count: int) -> None:
        if count > self.size - self.at:
            raise DamagedError(f"{count:,} bytes are missing from byte {self.at:,} on")
        self.at += count
        self.file.seek(self.at)

    def _number(self, letter: str) -> int:
        form = f"<{letter}"
        value: int = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        return value

    def _name(self) -> str:
        length = self._number("Q")
        if length > MAX_NAME:
            raise DamagedError(f"a name of {length:,} bytes")
        return self._take(length).decode()

    def _value(self, kind: int) -> Value:
        if kind == TEXT:
            length = self._number("Q")
            if length > KEPT:
                self._skip(length)
                return None
            return self._take(length).decode(errors="replace")
        if kind == ARRAY:
            return self._array(self._number("I"), self._number("Q"))
        if kind not in SCALARS:
            raise DamagedError(f"a setting of type {kind}")
        return self._number(SCALARS[kind])

    def _array(self, kind: int, count: int) -> Value:
        """The numbers of a short array; everything else is passed over.

        Raises:
            DamagedError: It holds what no file of a model holds.
        """
        if kind in SCALARS:
            form = f"<{count}{SCALARS[kind]}" if count <= KEPT else ""
            if form:
                return tuple(struct.unpack(form, self._take(struct.calcsize(form))))
            self._skip(count * struct.calcsize(f"<{SCALARS[kind]}"))
            return None
        self.walked += count
        if kind != TEXT or self.walked > WALKED:
            raise DamagedError(f"an array of {count:,} values of type {kind}")
        for _ in range(count):
            self._skip(self._number("Q"))
        return None

    def _info(self) -> TensorInfo:
        name, dimensions = self._name(), self._number("I")
        if dimensions > DIMENSIONS:
            raise DamagedError(f"{name[:80]!r} of {dimensions:,} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        kind, offset = self._number("I"), self._number("Q")
        if prod(shape) >= 2**63 or max(shape, default=0) >= 2**48 or offset > self.size:
            raise DamagedError(f"{name[:80]!r} is said to be {'×'.join(map(str, shape))} at byte {offset:,}")
        return TensorInfo(name, shape, kind, offset)
