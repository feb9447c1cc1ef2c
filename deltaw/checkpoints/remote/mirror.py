"""A local directory that stands for a remote one: small files as they are, files of weights as empty places.

A process sees one state of each address: it is pinned when it is opened first, and stays what it was.
"""

from __future__ import annotations

import atexit
import logging
import re
import shutil
import tempfile
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path, PurePosixPath
from urllib.parse import urljoin, urlsplit

from deltaw.checkpoints import hub
from deltaw.checkpoints.remote import buckets, http
from deltaw.checkpoints.remote.file import CHUNK, HUB, PARALLEL, RemoteFile, hub_parts, named, target
from deltaw.documents import Document, parse_object
from deltaw.errors import CheckpointError
from deltaw.results.sources import FileStamp

log = logging.getLogger(__name__)
ADDRESS = re.compile(rf"^({HUB}|https?|{'|'.join(buckets.SCHEMES)})://", re.IGNORECASE)
PAGE = re.compile(
    r"^https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/(?:resolve|blob|tree)/([^/?]+)(/[^?]*)?)?/?(?:\?.*)?$"
)
WEIGHTS = re.compile(r"\.(safetensors|bin|pt|pth|ckpt|gguf)$", re.IGNORECASE)
SMALL = re.compile(r"(^|/)(README\.md|[^/]+\.json)$")
NOT_NEEDED = re.compile(r"(^|/)(tokenizer|vocab|special_tokens|added_tokens|trainer_state|onnx/|\.)[^/]*")
DEEPEST = 3  # parts of a path below the directory: components of a pipeline, initial adapters
# What a web server, which lists nothing, is asked for.
INDICES = tuple(f"{n}.safetensors.index.json" for n in ("model", "diffusion_pytorch_model", "adapter_model"))
SINGLE = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "adapter_model.safetensors",
    "adapters.safetensors",
    "pytorch_lora_weights.safetensors",
    "pytorch_model.bin",
    "adapter_model.bin",
)
BESIDE = ("config.json", "adapter_config.json", "README.md")
PIPELINE = "model_index.json"


@dataclass(frozen=True)
class Listing:
    """What lies at an address.

    Attributes:
        files: By their paths below the directory, with `/`.
        single: Whether the address is that of one file.
        revision: The commit, on the Hub.
        repository: On the Hub, where all of one is meant: its id.
    """

    files: Mapping[str, RemoteFile]
    single: bool = False
    revision: str | None = None
    repository: str = ""

    @property
    def weights(self) -> list[str]:
        """The files that have to be in the cache, if they are to be read from there."""
        found = [name for name in self.files if name.endswith(".safetensors")]
        return found or [name for name in self.files if WEIGHTS.search(name)]


_lock = threading.RLock()
_mirrors: dict[str, tuple[Path, str | None]] = {}
_places: dict[Path, RemoteFile] = {}


def is_address(source: str) -> bool:
    """Whether a text is an address and neither a path nor an id."""
    return ADDRESS.match(source) is not None


def remote_at(path: Path) -> RemoteFile | None:
    """The remote file whose place in a mirror a path is; None of every other path."""
    return _places.get(path)


def stamps(files: Iterable[FileStamp]) -> tuple[FileStamp, ...]:
    """The stamps of files, those in a mirror as the remote files that they stand for."""
    found = ((stamp, _places.get(Path(stamp.path))) for stamp in files)
    return tuple(stamp if file is None else FileStamp(str(file), file.size, 0, file.etag) for stamp, file in found)


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
            listing = _listed(address)
        except hub.UnreachableError:
            return _from_cache(address, source)
        if listing.repository and listing.revision:
            found = hub.cached(listing.repository, listing.revision, listing.weights)
            if found is not None:
                return found, listing.revision
        try:
            _mirrors[source] = _mirror(source, listing)
        except OSError as e:  # a full disk, a name that no disk can have
            raise CheckpointError(f"{source}: cannot be kept in {tempfile.gettempdir()} ({e.strerror or e})") from e
        return _mirrors[source]


def hub_address(source: str) -> str:
    """The address `hf://…` of an id, of an address, or of a page on the Hub; empty of everything else."""
    if hub.looks_like_id(source):
        repo, mark, revision = source.partition("@")
        return f"{HUB}://{repo}{mark}{revision.replace('/', '%2F')}"
    page = PAGE.match(source)
    if page is not None:
        return f"{HUB}://{page[1]}{f'@{page[2]}' if page[2] else ''}{page[3] or ''}"
    return source if source.lower().startswith(f"{HUB}://") else ""


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
    path, _ = mirrored(source)
    with _lock:
        for place in [p for p in _places if p == path or p.is_relative_to(path)]:
            file = _places.pop(place)
            if WEIGHTS.search(place.name):
                _download(file, place)


def _download(file: RemoteFile, place: Path) -> None:
    with place.open("wb") as out:
        for at in range(0, file.size, CHUNK * PARALLEL):
            out.write(file.read(at, CHUNK * PARALLEL))


def _listed(source: str) -> Listing:
    scheme = source.partition(":")[0].lower()
    if scheme == HUB:
        return _on_hub(source)
    if scheme in buckets.SCHEMES:
        buckets.require(source)
        return _in_bucket(source)
    if scheme == "http" and not _loopback(source):
        log.warning("%s: is read without encryption; use https:// where there is", named(source))
    return _on_web(source)


def _loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _on_hub(source: str) -> Listing:
    repo, revision, path = hub_parts(source)
    about = hub.repository(repo, revision)
    at = f"{HUB}://{about.id}@{about.commit}/"
    below = _below(path, {name: RemoteFile(at + name, size) for name, size in about.files.items()}, source)
    return replace(below, revision=about.commit, repository="" if path else about.id)


def _in_bucket(source: str) -> Listing:
    bucket, path = buckets.split(source)
    files = {name: RemoteFile(f"{bucket}/{name}", *about) for name, about in buckets.listing(source).items()}
    return _below(path.rstrip("/"), files, source)


def _below(path: str, files: Mapping[str, RemoteFile], source: str) -> Listing:
    """Of the files of a repository or bucket those at or below a path.

    Raises:
        CheckpointError: There is none.
    """
    if path in files:
        return Listing({PurePosixPath(path).name: files[path]}, single=True)
    prefix = f"{path}/" if path else ""
    found = {name.removeprefix(prefix): file for name, file in files.items() if name.startswith(prefix)}
    if not found:
        raise CheckpointError(f"{source}: nothing lies there; check the path")
    return Listing(found)


def _on_web(source: str) -> Listing:
    """A file, or what of the usual names lies below an address.

    Raises:
        CheckpointError: There is nothing of it, or the server cannot be reached or sends no ranges.
    """
    file = source.partition("?")[0]
    if "@" in urlsplit(source).netloc:
        raise CheckpointError("a password in an address is not sent, since results keep the address; give a signed one")
    if WEIGHTS.search(file):
        return Listing({PurePosixPath(file).name: RemoteFile(source, *http.stat(target(source)))}, single=True)
    folder = source.rstrip("/") + "/"
    found = _folder(folder, "")
    if not any(WEIGHTS.search(name) for name in found):
        raise CheckpointError(
            f"{source}: no weights under the usual names there ({SINGLE[0]}, {INDICES[0]}, …); give the address of a "
            ".safetensors file"
        )
    return Listing(found)


def _folder(root: str, inner: str) -> dict[str, RemoteFile]:
    """The files of one directory of a web server, by their paths below `root`.

    Raises:
        CheckpointError: The index names a shard that is not there, or the server cannot be reached.
    """
    at = urljoin(root, inner)
    found = _stats(at, inner, [*BESIDE, *INDICES, PIPELINE])
    shards = [s for n in INDICES if inner + n in found for s in _shards(found[inner + n])]
    found |= _stats(at, inner, shards or SINGLE)
    lost = next((s for s in shards if inner + s not in found), None)
    if lost is not None:
        raise CheckpointError(f"{at}{lost}: is named by the index and is not there; check the address")
    if not inner and PIPELINE in found:
        for component in _object(found[PIPELINE]):
            if re.fullmatch(r"[A-Za-z0-9]\w*", component):
                found |= _folder(root, f"{component}/")
    return found


def _shards(index: RemoteFile) -> list[str]:
    """The shards that an index names; whoever reads the index refuses names that lead elsewhere."""
    named = _object(index).inner("weight_map").values.values()
    return sorted({n for n in named if isinstance(n, str) and re.fullmatch(r"[\w.-]+", n) and ".." not in n})


def _object(file: RemoteFile) -> Document:
    return parse_object(file.whole().decode("utf-8", "replace"), str(file))


def _stats(folder: str, inner: str, names: Iterable[str]) -> dict[str, RemoteFile]:
    wanted = [*names]
    with ThreadPoolExecutor(PARALLEL) as pool:
        found = list(pool.map(lambda name: _there(folder + name), wanted))
    return {inner + name: file for name, file in zip(wanted, found, strict=True) if file is not None}


def _there(url: str) -> RemoteFile | None:
    try:
        return RemoteFile(url, *http.stat(target(url)))
    except http.MissingError:
        return None


def _mirror(source: str, listing: Listing) -> tuple[Path, str | None]:
    root = _room()
    folder = root / (
        re.sub(r"[^\w.-]+", "-", named(source.partition("://")[2] or source)).strip("-.")[:100] or "remote"
    )
    folder.mkdir(parents=True)
    small: list[Path] = []
    for name, file in listing.files.items():
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or len(parts.parts) > DEEPEST or "\0" in name:
            continue
        is_small = SMALL.search(name) is not None and not NOT_NEEDED.search(name)
        if listing.single or WEIGHTS.search(name) or is_small:
            place = folder / parts
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
            _places[place] = file
            small += [place] if is_small and not listing.single else []
    with ThreadPoolExecutor(PARALLEL) as pool:
        for place, content in zip(small, pool.map(lambda place: _places[place].whole(), small), strict=True):
            place.write_bytes(content)
    return (folder / next(iter(listing.files)) if listing.single else folder), listing.revision


def _room() -> Path:
    """A new directory that is removed when the process ends."""
    path = Path(tempfile.mkdtemp(prefix="deltaw-")).resolve()
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path
