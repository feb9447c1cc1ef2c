"""A file that lies elsewhere, as it was when it was opened; its bytes come by ranges, several at a time.

HTTP is loaded when something is asked for: opening a local file takes 20 ms, and loading HTTP as long.
"""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from deltaw.checkpoints.remote import buckets

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

    from deltaw.checkpoints.remote.http import Target

CHUNK = 16 << 20  # bytes of a request: a failure costs no more, and a signed address serves many
BLOCK = 4 << 10  # bytes: what describes a tensor in an archive takes less at either end of it
PARALLEL = 16  # requests at a time, of all threads together
HUB = "hf"
LOGIN = "log in (hf auth login), or ask for access on the model's page"


@dataclass(frozen=True)
class RemoteFile:
    """A file that lies elsewhere. It costs nothing to send to another process, which reads its own ranges.

    Attributes:
        address: `hf://org/name@COMMIT/model.safetensors`, `https://…`, `s3://…`.
        size: In bytes.
        etag: What tells it from a later file of the same address; empty on the Hub, where the commit does.
    """

    address: str
    size: int
    etag: str = ""

    def __str__(self) -> str:
        return named(self.address)

    @property
    def name(self) -> str:
        """The last part of its address."""
        return named(self.address).rstrip("/").rpartition("/")[2]

    def read(self, offset: int, count: int) -> bytes:
        """Some bytes; fewer where the file ends.

        Raises:
            CheckpointError: They cannot be read.
        """
        out = bytearray(max(0, min(count, self.size - offset)))
        self.fill(offset, memoryview(out))
        return bytes(out)

    def fill(self, offset: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `offset` on, which have to be there.

        Raises:
            CheckpointError: They cannot be read.
        """
        starts = range(0, len(into), CHUNK)
        if len(starts) > 1:
            for done in [_pool().submit(self._range, offset + at, into[at : at + CHUNK]) for at in starts]:
                done.result()
        elif starts:
            self._range(offset, into)

    def whole(self) -> bytes:
        """All of a small file.

        Raises:
            CheckpointError: It cannot be read, or is not small.
        """
        if self.address.partition(":")[0] in buckets.SCHEMES:
            return buckets.read_small(self.address)
        from deltaw.checkpoints.remote import http

        return http.read_small(target(self.address))

    def _range(self, offset: int, into: memoryview) -> None:
        if self.address.partition(":")[0] in buckets.SCHEMES:
            buckets.read_range(self.address, offset, into, self.etag)
        else:
            from deltaw.checkpoints.remote import http

            http.read_range(target(self.address), offset, into, self.size, self.etag)


@dataclass(frozen=True)
class Ranges:
    """A remote file that is opened as a local one, for the little that describes an archive; blocks of it are kept."""

    file: RemoteFile
    kept: dict[int, bytes] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.file)

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open it for reading.

        Raises:
            CheckpointError: When it is read, and cannot be.
        """
        assert mode == "rb"
        return io.BufferedReader(_Blocks(self), BLOCK)


class _Blocks(io.RawIOBase):
    """Read in whole blocks, each fetched once."""

    def __init__(self, ranges: Ranges) -> None:
        self.ranges, self.at = ranges, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.ranges.file.size}[whence]
        return self.at

    def readinto(self, into: Buffer) -> int:
        view = memoryview(into).cast("B")
        number, inside = divmod(self.at, BLOCK)
        if number not in self.ranges.kept:
            self.ranges.kept[number] = self.ranges.file.read(number * BLOCK, BLOCK)
        data = self.ranges.kept[number][inside : inside + len(view)]
        view[: len(data)] = data
        self.at += len(data)
        return len(data)


def named(address: str) -> str:
    """An address as people are told it: without its query, which may be a signature."""
    return address.partition("?")[0]


def target(address: str) -> Target:
    """Where a file of the Hub, or of a web server, is asked for."""
    from deltaw.checkpoints.remote.http import Target

    if not address.startswith(f"{HUB}://"):
        return Target(named(address), address)
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    repo, revision, path = hub_parts(address)
    url = hf_hub_url(repo, path, revision=revision or None, endpoint=constants.ENDPOINT)
    return Target(address, url, tuple(build_hf_headers().items()), LOGIN)


def hub_parts(address: str) -> tuple[str, str, str]:
    """Repository, revision and path of `hf://[org/]name[@revision][/path]`; `%2F` is a slash in a revision."""
    owner, _, rest = address[len(HUB) + 3 :].partition("/")
    name, _, path = rest.partition("/")
    name, _, revision = name.partition("@")
    if not name or "@" in owner:  # one of the Hub's first models, which have no owner
        name, _, revision = owner.partition("@")
        return name, revision.replace("%2F", "/").replace("%2f", "/"), rest.strip("/")
    return f"{owner}/{name}", revision.replace("%2F", "/").replace("%2f", "/"), path.strip("/")


_pools: list[ThreadPoolExecutor] = []
_lock = threading.Lock()


def _pool() -> ThreadPoolExecutor:
    with _lock:
        if not _pools:
            _pools.append(ThreadPoolExecutor(PARALLEL, thread_name_prefix="ranges"))
        return _pools[0]
