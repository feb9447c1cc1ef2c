"""What was opened: the two sides of an analysis, and their files as they were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, order=True)
class FileStamp:
    """A file as it was when it was opened: equal only while nobody has written to it.

    Attributes:
        path: Absolute.
        size: In bytes.
        modified: Time of the last change, in nanoseconds.
    """

    path: str
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """The stamp of a file.

        Raises:
            OSError: It cannot be looked at.
        """
        stat = path.stat()
        return cls(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


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
        hash: Of its content; empty where that was not computed.
    """

    path: str = ""
    format: str = ""
    tensors: int = 0
    nbytes: int = 0
    revision: str | None = None
    files: tuple[FileStamp, ...] = ()
    base_name: str | None = None
    hash: str = ""

    @property
    def names(self) -> list[str]:
        """What it is called, whatever its files hold by now: the Hub revision, or the paths of its files."""
        return [self.revision] if self.revision else sorted({file.path for file in self.files}) or [self.path]

    def to_dict(self) -> dict[str, object]:
        """As JSON values: `path`, `revision`, `format`, `tensors`, `bytes`, `files`, `base_name`, `hash`."""
        return {
            "path": self.path,
            "revision": self.revision,
            "format": self.format,
            "tensors": self.tensors,
            "bytes": self.nbytes,
            "files": [{"path": f.path, "size": f.size, "modified": f.modified} for f in self.files],
            "base_name": self.base_name,
            "hash": self.hash,
        }

    @classmethod
    def from_dict(cls, written: Mapping[str, Any]) -> Source | None:
        """Read what `to_dict` wrote; None of the empty mapping that stands for no base.

        Raises:
            KeyError, TypeError: It is no such mapping.
        """
        if not written:
            return None
        return cls(
            path=written["path"],
            format=written["format"],
            tensors=written["tensors"],
            nbytes=written["bytes"],
            revision=written["revision"],
            files=tuple(FileStamp(**file) for file in written["files"]),
            base_name=written["base_name"],
            hash=written["hash"],
        )
