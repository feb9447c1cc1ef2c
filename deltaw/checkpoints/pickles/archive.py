"""torch's zip archives: one pickle (`NAME/data.pkl`) and one stored entry per storage (`NAME/data/KEY`).

Offsets and sizes come from the zip's directory, checked against each entry's own header; entries must be stored as
they are, in little-endian order.
"""

from __future__ import annotations

import errno
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from deltaw.checkpoints.pickles.legacy import read_nested
from deltaw.checkpoints.pickles.machine import Machine, PickleError, RefusalError
from deltaw.checkpoints.pickles.rebuild import Rebuilder, Storage
from deltaw.checkpoints.remote.file import Ranges
from deltaw.errors import CheckpointError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

LOCAL_HEADER = 30
MAX_PICKLE = 2**30


@dataclass(frozen=True)
class Archive:
    """An open archive: where it lies in its file, its entries, and the folder that they lie in."""

    path: Path | Ranges
    start: int
    size: int
    entries: dict[str, zipfile.ZipInfo]
    root: str

    def place(self, storage: Storage) -> tuple[int, int]:
        """Where a storage's bytes lie: offset in the file, and how many there are (fewer than it says, if damaged).

        Raises:
            PickleError: There is no such entry, or it is compressed.
        """
        entry = self.entries.get(f"{self.root}data/{storage.key}")
        if entry is None:
            raise PickleError(f"its storage {storage.key!r} is not in the archive")
        with self.path.open("rb") as file:
            offset, length = _data(Window(file, self.start, self.size), entry, self.size)
        return self.start + offset, length

    def read(self, name: str) -> bytes | None:
        """The bytes of a small entry; None where there is none.

        Raises:
            PickleError: It is compressed, or leaves the file.
        """
        entry = self.entries.get(f"{self.root}{name}")
        if entry is None:
            return None
        if entry.file_size > MAX_PICKLE:
            raise PickleError(f"{name} has {entry.file_size:,} bytes")
        with self.path.open("rb") as file:
            window = Window(file, self.start, self.size)
            offset, length = _data(window, entry, self.size)
            window.seek(offset)
            return window.read(length)


class Window(io.RawIOBase):
    """Some bytes of a file as a file of their own."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self.file, self.start, self.size, self.at = file, start, size, 0

    def readable(self) -> bool:
        """It is read."""
        return True

    def seekable(self) -> bool:
        """It can be read anywhere."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place.

        Raises:
            OSError: It lies before the first byte.
        """
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence]
        if at < 0:
            raise OSError(errno.EINVAL, "before the first byte")
        self.at = at
        return at

    def readinto(self, into: Buffer) -> int:
        """Read some bytes, none behind the last."""
        view = memoryview(into).cast("B")
        self.file.seek(self.start + self.at)
        data = self.file.read(max(0, min(len(view), self.size - self.at)))
        view[: len(data)] = data
        self.at += len(data)
        return len(data)


def open_archive(path: Path | Ranges, start: int = 0, size: int | None = None) -> Archive:
    """Open a zip archive of torch's.

    Args:
        path: The file.
        start, size: Where in it the archive lies; all of the file by default.

    Raises:
        CheckpointError: It is damaged, or an archive of something else.
    """
    try:
        if size is None:
            assert isinstance(path, Path)
            size = path.stat().st_size
        with path.open("rb") as raw, zipfile.ZipFile(Window(raw, start, size)) as file:
            infos = file.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, EOFError) as e:
        raise CheckpointError(f"{path}: not a complete PyTorch file ({e}); copy or download it again") from e
    entries = {info.filename: info for info in infos}
    if len(entries) != len(infos):
        raise CheckpointError(f"{path}: two entries of this archive have one name; save it again with torch.save")
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise CheckpointError(f"{path}: {_other(entries)}")
    return Archive(path, start, size, entries, pickles[0].removesuffix("data.pkl"))


def load(archive: Archive) -> object:
    """What the archive's pickle describes.

    Raises:
        CheckpointError: It is big-endian.
        PickleError: The pickle is malformed, or compressed.
    """
    order = archive.read("byteorder")
    if order not in {None, b"little"}:
        raise CheckpointError(
            f"{archive.path}: its numbers are big-endian; load it with torch and save it again on this machine"
        )
    data = archive.read("data.pkl") or b""
    maker = Rebuilder(len(data), read_nested)
    return Machine(maker.call, maker.build).run(io.BytesIO(data))


def _data(file: Window, entry: zipfile.ZipInfo, size: int) -> tuple[int, int]:
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.compress_size != entry.file_size:
        raise RefusalError(f"{entry.filename} is compressed; load the file with torch and save it again")
    file.seek(entry.header_offset)
    header = file.read(LOCAL_HEADER)
    if len(header) < LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        raise PickleError(f"{entry.filename} is not where the archive's directory says")
    start = entry.header_offset + LOCAL_HEADER + int.from_bytes(header[26:28], "little")
    start += int.from_bytes(header[28:30], "little")
    return start, max(0, min(entry.file_size, size - start))


def _other(names: dict[str, zipfile.ZipInfo]) -> str:
    """What a zip archive is that is none of `torch.save`'s."""
    if names and all(name.endswith(".npy") for name in names):
        return "NumPy arrays (.npz), which are not read; load them and save a safetensors file"
    if any(name.endswith("/archive_format") or name == "archive_format" for name in names):
        return "a torch.export archive (.pt2), which is not read; save the model's state_dict()"
    if any("/.data/" in name or name.endswith("/.data/version") for name in names):
        return "a torch.package archive, which is not read; save the model's state_dict()"
    shown = ", ".join(list(names)[:3])
    return f"a zip archive, but none of torch.save's (it holds {shown or 'nothing'}); unpack it"
