"""A local directory that stands for a remote one: small files as they are, files of weights as empty places.

A process sees one state of each address: it is pinned when it is opened first, and stays what it was. Directories of a
pinned state are kept, so that every process of this machine fetches their small files once.
"""

from __future__ import annotations

import atexit
import hashlib
import re
import shutil
import tempfile
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from deltaw.checkpoints import hub
from deltaw.checkpoints.remote.file import CHUNK, PARALLEL, RemoteFile, hub_parts, named
from deltaw.checkpoints.remote.listing import WEIGHTS, Listing, hub_address, listed
from deltaw.errors import CheckpointError
from deltaw.files import cache_directory
from deltaw.results.sources import FileStamp

SMALL = re.compile(r"(^|/)(README\.md|\.metadata|[^/]+\.json)$")
NOT_NEEDED = re.compile(r"(^|/)(tokenizer|vocab|special_tokens|added_tokens|trainer_state|onnx/|\.(?!metadata$))[^/]*")
DEEPEST = 3  # parts of a path below the directory: components of a pipeline, initial adapters
VERSION = 1  # of what is kept, and how

_lock = threading.RLock()
_mirrors: dict[str, tuple[Path, str | None]] = {}
_places: dict[Path, RemoteFile] = {}


def remote_at(path: Path) -> RemoteFile | None:
    """The remote file whose place in a mirror a path is; None of every other path."""
    return _places.get(path)


def stamps(files: Iterable[FileStamp]) -> tuple[FileStamp, ...]:
    """The stamps of files, those in a mirror as the remote files that they stand for."""
    found = ((stamp, _places.get(Path(stamp.path))) for stamp in files)
    return tuple(stamp if file is None else _stamp(file) for stamp, file in found)


def _stamp(file: RemoteFile) -> FileStamp:
    return FileStamp(str(file), file.size, 0, file.etag)


def mirrored(source: str) -> tuple[Path, str | None]:
    """The local directory (or the place of a file) that stands for an address, and the commit on the Hub.

    Raises:
        CheckpointError: Nothing that is read lies there, or it cannot be reached.
        MissingExtraError: A bucket, and obstore is not installed.
    """
    with _lock:
        if source in _mirrors:
            return _mirrors[source]
        address = hub_address(source) or source
        try:
            listing = listed(address)
        except hub.UnreachableError:
            return _from_cache(address, source)
        if listing.repository and listing.revision:
            found = hub.cached(listing.repository, listing.revision, listing.weights)
            if found is not None:
                return found, listing.revision
        try:
            _mirrors[source] = _mirror(source, listing)
        except OSError as e:  # a full disk, a name that no disk can have
            raise CheckpointError(f"{source}: its small files cannot be kept here ({e.strerror or e})") from e
        return _mirrors[source]


def _from_cache(address: str, source: str) -> tuple[Path, str | None]:
    """What the Hub's cache has of an address, where there is no network.

    Raises:
        CheckpointError: It is not there.
    """
    repo, revision, path = hub_parts(address)
    folder, commit = hub.fetch(f"{repo}@{revision}" if revision else repo)
    if not (folder / path).exists():
        raise CheckpointError(f"{source}: is not in the cache, and the Hub cannot be reached; check the network")
    return folder / path, commit


def fetch_whole(source: str) -> None:
    """Download what lies at an address, weights and all; it is read from there for the rest of the process.

    Raises:
        CheckpointError: It cannot be downloaded.
        MissingExtraError: A bucket, and obstore is not installed.
    """
    address = hub_address(source)
    if address and not hub_parts(address)[2]:
        repo, revision, _ = hub_parts(address)
        hub.fetch(f"{repo}@{revision}" if revision else repo)
        with _lock:
            _mirrors.pop(source, None)
        return
    listing = listed(address or source)
    files = _wanted(listing)
    try:
        folder = _room() / _name_of(source)
        _fill(folder, files)
        for name in filter(WEIGHTS.search, files):
            _download(files[name], folder / name)
    except OSError as e:
        raise CheckpointError(f"{source}: cannot be downloaded to {tempfile.gettempdir()} ({e.strerror or e})") from e
    with _lock:
        _mirrors[source] = _at(folder, listing)


def _download(file: RemoteFile, place: Path) -> None:
    with place.open("wb") as out:
        for at in range(0, file.size, CHUNK * PARALLEL):
            out.write(file.read(at, CHUNK * PARALLEL))


def _mirror(source: str, listing: Listing) -> tuple[Path, str | None]:
    """The directory of a listing, made unless it is there.

    Raises:
        OSError: It cannot be made.
    """
    files = _wanted(listing)
    shelf = _shelf(files)
    folder = (shelf or _room()) / _name_of(source)
    if shelf is None:
        _fill(folder, files)
    elif not folder.is_dir():
        made = Path(tempfile.mkdtemp(prefix=".", dir=shelf))
        _fill(made, files)
        try:
            made.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(made, ignore_errors=True)
            if not folder.is_dir():
                raise
    _places.update({folder / name: file for name, file in files.items()})
    return _at(folder, listing)


def _at(folder: Path, listing: Listing) -> tuple[Path, str | None]:
    return (folder / next(iter(listing.files)) if listing.single else folder), listing.revision


def _wanted(listing: Listing) -> dict[str, RemoteFile]:
    """The files of a listing that a directory has, by their paths in it."""
    out = {}
    for name, file in listing.files.items():
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or len(parts.parts) > DEEPEST or "\0" in name:
            continue
        if listing.single or WEIGHTS.search(name) or _is_small(name):
            out[name] = file
    return out


def _is_small(name: str) -> bool:
    return SMALL.search(name) is not None and not NOT_NEEDED.search(name)


def _fill(folder: Path, files: Mapping[str, RemoteFile]) -> None:
    small = [name for name in files if not WEIGHTS.search(name) and _is_small(name)]
    with ThreadPoolExecutor(PARALLEL) as pool:
        contents = dict(zip(small, pool.map(lambda name: files[name].whole(), small), strict=True))
    for name in files:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(contents.get(name, b""))


def _name_of(source: str) -> str:
    """What messages of a file in the directory call it by."""
    return re.sub(r"[^\w.-]+", "-", named(source.partition("://")[2] or source)).strip("-.")[:100] or "remote"


def _shelf(files: Mapping[str, RemoteFile]) -> Path | None:
    """Where the directory of a pinned state is kept; None of one that nothing pins, or where nothing can be kept."""
    if not all(stamp.pinned for stamp in map(_stamp, files.values())):
        return None
    told = [str(VERSION), *(f"{name} {_stamp(file)}" for name, file in sorted(files.items()))]
    try:
        shelf = cache_directory() / "remote" / hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
        shelf.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home directory, or one that is read only
        return None
    return shelf.resolve()


def _room() -> Path:
    """A new directory that is removed when the process ends."""
    path = Path(tempfile.mkdtemp(prefix="deltaw-")).resolve()
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path
