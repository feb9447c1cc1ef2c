"""What was opened: the two sides of an analysis, and their files as they were."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from deltaw.types import JsonValue

HUB_ADDRESS = re.compile(r"^(hf://[^/]+/[^/@]+)(@[^/]*)?")
SAFETENSORS_HEADER = 100_000_000  # bytes, the format's limit
ENDS = 1 << 20  # bytes at both ends of a file that enter its hash: headers, and the directory of a PyTorch file
SAMPLE, SAMPLES = 1 << 12, 1 << 10  # between them: bytes of a sample, and their number at most


def writable(text: str) -> str:
    """A text that a file of results can hold: bytes of a path that are not UTF-8 as their escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, order=True)
class FileStamp:
    """A file as it was when it was opened: equal only while nobody has written to it.

    Attributes:
        path: Absolute.
        size: In bytes.
        modified: Time of the last change, in nanoseconds.
        etag: What its server tells it by from a later one, where it lies elsewhere.
    """

    path: str
    size: int
    modified: int
    etag: str = ""

    @property
    def pinned(self) -> bool:
        """Whether it lies elsewhere, and its address or its ETag tells what it holds."""
        return self.path.startswith("hf://") or bool(self.etag)

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """The stamp of a file.

        Raises:
            OSError: It cannot be looked at.
        """
        stat = path.stat()
        return cls(writable(str(path.resolve())), stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True)
class Source:
    """What one side of an analysis was.

    Attributes:
        path: Path or Hub id, as it was given; empty for a model in memory.
        format: `safetensors`, `pytorch`, `peft lora`, …
        tensors: How many it stores.
        nbytes: Their stored bytes; tied tensors count once.
        revision: The Hub commit, if it came from the Hub.
        files: The files that were read; none for a model in memory, of which nothing says that it is still what it was.
        base_name: The base that an adapter names, if any.
        found_by: What named the base, where only the fine-tune was given; empty otherwise.
        hash: Of its content, see `content_hash`; empty where that is not known.
    """

    path: str = ""
    format: str = ""
    tensors: int = 0
    nbytes: int = 0
    revision: str | None = None
    files: tuple[FileStamp, ...] = ()
    base_name: str | None = None
    found_by: str = ""
    hash: str = ""

    def __post_init__(self) -> None:
        for name in ("path", "found_by"):
            object.__setattr__(self, name, writable(getattr(self, name)))  # frozen

    @property
    def names(self) -> list[str]:
        """What it is called, whatever its files hold by now: the Hub revision, or the paths of its files."""
        return [self.revision] if self.revision else sorted({file.path for file in self.files}) or [self.path]

    @property
    def argument(self) -> str:
        """What a command line calls it: its path, or the Hub id at the revision that was read."""
        if not self.revision:
            return self.path
        if HUB_ADDRESS.match(self.path):
            return HUB_ADDRESS.sub(rf"\1@{self.revision}", self.path)
        return f"{self.path.partition('@')[0]}@{self.revision}"

    @property
    def elsewhere(self) -> bool:
        """Whether it is read where it lies, by ranges."""
        return any("://" in file.path for file in self.files)

    def hashed(self) -> Source:
        """The same with the hash of its files."""
        return replace(self, hash=content_hash(self.files))

    def to_dict(self) -> dict[str, JsonValue]:
        """As JSON values: the attributes by name, `nbytes` as `bytes`."""
        return {
            "path": self.path,
            "revision": self.revision,
            "format": self.format,
            "tensors": self.tensors,
            "bytes": self.nbytes,
            "files": [{"path": f.path, "size": f.size, "modified": f.modified, "etag": f.etag} for f in self.files],
            "base_name": self.base_name,
            "found_by": self.found_by,
            "hash": self.hash,
        }


def content_hash(files: Iterable[FileStamp]) -> str:
    """A SHA-256 of what lies in files: their sizes, headers and evenly spaced samples; the same on every machine.

    Of each file enter its size, the first MiB (of safetensors the whole header), the last MiB, and up to 1024 samples
    of 4 KiB between them, at least 1 MiB apart. Files up to 2 MiB enter whole. Names, times and the order of the files
    do not enter. Two checkpoints of one hash may thus differ between the samples: it tells checkpoints apart, and does
    not protect from forgery.

    Args:
        files: As they were when they were opened.

    Returns:
        `sampled-sha256:` and 64 hexadecimal digits; empty where there is no file, or one is not what it was.
    """
    digests = []
    for stamp in files:
        path = Path(stamp.path)
        try:
            if FileStamp.of(path) != stamp:
                return ""
            with path.open("rb", buffering=SAMPLE) as file:
                digests.append(_digest(file, stamp.size))
        except OSError:
            return ""
    return f"sampled-sha256:{hashlib.sha256(b''.join(sorted(digests))).hexdigest()}" if digests else ""


def _digest(file: BinaryIO, size: int) -> bytes:
    start = file.read(9)
    header = 8 + int.from_bytes(start[:8], "little")
    begin = max(ENDS, header if start[8:] == b"{" and header <= min(size, SAFETENSORS_HEADER) else 0)
    end = max(begin, size - ENDS)
    step = max(ENDS, -(-(end - begin) // SAMPLES))
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    for at, count in ((0, begin), *((at, SAMPLE) for at in range(begin, end, step)), (end, size - end)):
        file.seek(at)
        digest.update(file.read(max(count, 0)))
    return digest.digest()
