"""What lies at an address: the files of a repository, of a bucket, or of a directory of a web server."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import PurePosixPath
from urllib.parse import urljoin, urlsplit

from deltaw.checkpoints import hub
from deltaw.checkpoints.remote import buckets
from deltaw.checkpoints.remote.file import HUB, PARALLEL, RemoteFile, hub_parts, named, target
from deltaw.documents import Document, parse_object
from deltaw.errors import CheckpointError

log = logging.getLogger(__name__)
ADDRESS = re.compile(rf"^({HUB}|https?|{'|'.join(buckets.SCHEMES)})://", re.IGNORECASE)
PAGE = re.compile(
    r"^https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/(?:resolve|blob|tree)/([^/?]+)(/[^?]*)?)?/?(?:\?.*)?$"
)
WEIGHTS = re.compile(r"\.(safetensors|bin|pt|pth|ckpt|gguf|distcp)$", re.IGNORECASE)
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


def is_address(source: str) -> bool:
    """Whether a text is an address and neither a path nor an id."""
    return ADDRESS.match(source) is not None


def hub_address(source: str) -> str:
    """The address `hf://…` of an id, of an address, or of a page on the Hub; empty of everything else."""
    if hub.looks_like_id(source):
        repo, mark, revision = source.partition("@")
        return f"{HUB}://{repo}{mark}{revision.replace('/', '%2F')}"
    page = PAGE.match(source)
    if page is not None:
        return f"{HUB}://{page[1]}{f'@{page[2]}' if page[2] else ''}{page[3] or ''}"
    return source if source.lower().startswith(f"{HUB}://") else ""


def listed(source: str) -> Listing:
    """What lies at an address.

    Raises:
        UnreachableError: The Hub cannot be asked.
        CheckpointError: Nothing that is read, or it cannot be reached.
        MissingExtraError: A bucket, and obstore is not installed.
    """
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
        raise CheckpointError(f"{source}: nothing is there; check the path")
    return Listing(found)


def _on_web(source: str) -> Listing:
    """A file, or what of the usual names lies below an address.

    Raises:
        CheckpointError: There is nothing of it, or the server cannot be reached or sends no ranges.
    """
    from deltaw.checkpoints.remote import http

    file = source.partition("?")[0]
    if "@" in urlsplit(source).netloc:
        raise CheckpointError(
            f"{urlsplit(source).hostname}: a password in an address is not sent; give a signed address, without one"
        )
    if WEIGHTS.search(file):
        return Listing({PurePosixPath(file).name: RemoteFile(source, *http.stat(target(source)))}, single=True)
    folder = source.rstrip("/") + "/"
    found = _folder(folder, "")
    if not any(WEIGHTS.search(name) for name in found):
        with suppress(http.MissingError):
            http.stat(target(folder + SINGLE[0]))  # denied: said so
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
    from deltaw.checkpoints.remote import http

    try:
        return RemoteFile(url, *http.stat(target(url)))
    except (http.MissingError, http.DeniedError):  # buckets without a list deny what is not there
        return None
