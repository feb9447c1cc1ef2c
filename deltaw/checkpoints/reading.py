"""One file of tensors, whatever its suffix says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deltaw.checkpoints import kinds, safetensors
from deltaw.checkpoints.remote import PARALLEL, remote_at
from deltaw.errors import CheckpointError
from deltaw.types import Handle

Tensors = dict[str, Handle]
Read = tuple[Tensors, tuple[str, ...], kinds.Kind]


def read_files(paths: Iterable[Path], wanted: str = "") -> Iterator[Read]:
    """What `read_file` gives of each of several files; headers that lie elsewhere are fetched at the same time.

    Raises:
        CheckpointError: One of them is not read.
    """
    files = [*paths]
    if len(files) > 1 and remote_at(files[0]) is not None:
        with ThreadPoolExecutor(PARALLEL) as pool:
            yield from pool.map(read_file, files, [wanted] * len(files))
    else:
        yield from (read_file(path, wanted) for path in files)


def read_file(path: Path, wanted: str = "") -> Read:
    """The tensors of one file, notes on it, and its kind.

    Args:
        path: The file.
        wanted: The mapping to take of a pickle (`ema`); empty for the one that holds the weights.

    Raises:
        CheckpointError: It is damaged, of a kind that is not read, or cannot be read at all.
    """
    if (elsewhere := remote_at(path)) is not None:
        if path.suffix.lower() != safetensors.SUFFIX:
            raise CheckpointError(
                f"{elsewhere}: only safetensors are read where they lie; analyze --download fetches it whole, or "
                "download it and give the file"
            )
        return *safetensors.read_header(elsewhere), "safetensors"
    try:
        kind = kinds.kind_of(path)
        if kind == "pytorch":
            from deltaw.checkpoints.pickles import read_pickle  # the rarer formats are loaded where they are met

            return *read_pickle(path, wanted), kind
        if wanted:
            raise CheckpointError(f"{path}: ::{wanted[:80]}: a {kind} file has no mappings to choose from")
        if kind == "gguf":
            from deltaw.checkpoints.gguf import open_gguf

            opened = open_gguf(path)
            return dict(opened.tensors), opened.notes, kind
        return *safetensors.read_header(path), kind
    except PermissionError as e:
        raise CheckpointError(f"{path}: cannot be read (no permission); ask its owner, or change its mode") from e
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read ({e.strerror or e})") from e
