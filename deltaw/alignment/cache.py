"""A base's singular vectors on disk, by the content of the matrix: ten fine-tunes of one base pay for them once.

One file per matrix, written to a temporary name and renamed, so that concurrent runs may share the folder: a reader
sees a whole file or none. The folder is bounded in size. Files that were used within the last hour are never
evicted: a base that does not fit would otherwise push out, matrix by matrix, just what the next run asks for first.

A cache saves time and nothing else: what is wrong with it is said once, and the run goes on without it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaw.errors import OptionError
from deltaw.files import cache_directory, parse_size, replacing

log = logging.getLogger(__name__)

VERSION = "2"  # of what a file holds; part of its name
LIMIT = 20 * 2**30  # bytes: the bases of one 7B model, 64 MiB for each 4096×4096 matrix
FRESH = 3600.0  # seconds
OFF = ("", "0", "off", "none", "no", "false")

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass
class BaseCache:
    """A folder of arrays by content key. It is left alone from the first time on that it cannot be used.

    Attributes:
        folder: Where; created when first written.
        limit: Its largest size in bytes.
    """

    folder: Path
    limit: int = LIMIT
    _broken: threading.Event = field(default_factory=threading.Event, init=False, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def get(self, key: str) -> dict[str, NDArray[np.generic]] | None:
        """What is stored under a key; None where there is nothing, or nothing that is whole."""
        from safetensors import SafetensorError, safe_open

        path = self._path(key)
        if self._broken.is_set():
            return None
        try:
            if not path.is_file():
                return None
            with safe_open(path, framework="numpy") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
                intact = (file.metadata() or {}).get("sum") == _checksum(found)
            os.utime(path)  # used now: the last to be evicted
        except FileNotFoundError:  # evicted by another run
            return None
        except (SafetensorError, ValueError, TypeError, MemoryError):
            intact = False
        except OSError as e:
            self._give_up(e)
            return None
        if intact:
            return found
        log.warning("%s: cached singular vectors are damaged; computing them again", path)
        self._remove(path)
        return None

    def put(self, key: str, arrays: Arrays) -> bool:
        """Store arrays under a key; False where there is no room for them or no permission."""
        from safetensors.numpy import save_file

        if self._broken.is_set():
            return False
        whole = {k: np.ascontiguousarray(a) for k, a in arrays.items()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._make_room(sum(a.nbytes for a in whole.values())):
                log.info("%s is full of matrices in use; these singular vectors are not kept", self.folder)
                return False
            with replacing(self._path(key), one_of_many=True) as temporary:
                save_file(whole, temporary, metadata={"sum": _checksum(whole)})
        except OSError as e:
            self._give_up(e)
            return False
        return True

    def _give_up(self, error: Exception) -> None:
        with self._lock:
            if not self._broken.is_set():
                self._broken.set()
                why = getattr(error, "strerror", None) or error
                log.warning("%s: singular vectors cannot be cached (%s); going on without a cache", self.folder, why)

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)  # another run may have been faster
        except OSError as e:
            self._give_up(e)

    def _path(self, key: str) -> Path:
        return self.folder / f"base-{VERSION}-{key}.safetensors"

    def _make_room(self, size: int) -> bool:
        files = sorted((s.st_mtime, s.st_size, p) for p in self.folder.glob("base-*.safetensors") if (s := _stat(p)))
        used = sum(f[1] for f in files)
        for stamp, freed, path in files:
            if used + size <= self.limit or time.time() - stamp < FRESH:
                break
            path.unlink(missing_ok=True)  # another run may have been faster
            used -= freed
        return used + size <= self.limit


def default_cache() -> BaseCache | None:
    """The cache that the environment asks for; None where that cannot be used, which is said.

    `DELTAW_CACHE` names the folder, or is `off`; `DELTAW_CACHE_SIZE` is its size. Without them:
    `$XDG_CACHE_HOME/deltaw` or `~/.cache/deltaw`, 20 GiB.
    """
    try:
        folder = os.environ.get("DELTAW_CACHE") or str(cache_directory())
        if folder.strip().lower() in OFF:
            return None
        return BaseCache(Path(folder).expanduser(), parse_size(os.environ.get("DELTAW_CACHE_SIZE", str(LIMIT))))
    except (OptionError, RuntimeError) as e:  # RuntimeError: there is no home
        log.warning("the cache of singular vectors cannot be used (%s); going on without it", e)
        return None


def _checksum(arrays: Arrays) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def content_key(matrix: Tensor) -> str:
    """A key of a matrix's bytes, dtype and shape; a transposed view has the key of its copy."""
    matrix = matrix.detach().cpu().contiguous()
    digest = hashlib.blake2b(f"{matrix.dtype} {tuple(matrix.shape)}".encode(), digest_size=20)
    if matrix.numel():
        digest.update(matrix.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:  # evicted by another run since it was listed
        return None
