"""What else with tensors lies in a checkpoint's directory: each file is named, with how many tensors it holds.

So a reader can tell a leftover from half of the model: `value_head.bin`, `non_lora_trainables.bin`, `2_Dense/`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from operator import attrgetter
from pathlib import Path

from deltaw.checkpoints.kinds import Foreign, holds_tensors
from deltaw.checkpoints.reading import read_file
from deltaw.errors import DeltaWError
from deltaw.types import counted

# What trainers leave beside the weights; none of it is weights.
NOT_WEIGHTS = re.compile(
    r"^(training_args|optimizer|optim|scheduler|scaler|rng_state.*|random_states.*|trainer_state|dataloader.*|sampler.*)"
    r"(_\d+)?\.\w+$|_optim_states\.pt$|^spectra\.safetensors$|\.(json|md|txt|py|jinja|ya?ml|toml|csv)$"
)
NOT_FOLDERS = re.compile(
    r"^(\.|checkpoint-\d|runs$|logs?$|wandb$|__pycache__$|figures$|deltaw-results$|onnx$|openvino$)"
)
COUNTED = 40  # files whose headers are read; of more, only the names are told
LISTED = 2000  # entries of a directory that are looked at


def beside(folder: Path, read: Collection[Path], names: Collection[str] = ()) -> tuple[str, ...]:
    """A note on each file with tensors in a directory, and one below it, that was not read.

    Args:
        folder: The directory.
        read: The files that were.
        names: The names of the tensors that were read.
    """
    own = {_identity(path) for path in read}
    notes: list[str] = []
    for entry in _files(folder):
        if NOT_WEIGHTS.search(entry.name) or _identity(path := Path(entry.path)) in own:
            continue
        kind = holds_tensors(path)
        if kind is not None:
            about = (
                kind.what if isinstance(kind, Foreign) else _about(path, names) if len(notes) < COUNTED else "tensors"
            )
            notes.append(f"{path.relative_to(folder)} ({about}) lies beside what is read, and was ignored")
    return tuple(notes)


def _identity(path: Path) -> tuple[int, int]:
    """Of the file that a path leads to, by whatever links."""
    about = path.stat()
    return about.st_dev, about.st_ino


def _about(path: Path, names: Collection[str]) -> str:
    try:
        found, _, _ = read_file(path)
    except DeltaWError as e:  # damaged, or the extra that reads it is not installed
        return f"cannot be read: {str(e).removeprefix(f'{path}: ')[:120]}"
    new = sum(n not in names for n in found)
    if not names or new == len(found):
        return counted(len(found), "tensor")
    return f"{counted(len(found), 'tensor')}, {'all of the same names' if not new else f'{new} of other names'}"


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    entries = _entries(folder)
    yield from _visible(entries)
    for entry in entries:
        if _followed(entry).is_dir() and not NOT_FOLDERS.match(entry.name):
            yield from _visible(_entries(Path(entry.path)))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a directory; what each is came with its name, so that none is asked for by itself."""
    with os.scandir(folder) as found:
        return sorted(found, key=attrgetter("name"))[:LISTED]


def _visible(entries: Iterable[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
    return (e for e in entries if not e.name.startswith(".") and _followed(e).is_file())


def _followed(entry: os.DirEntry[str]) -> os.DirEntry[str] | Path:
    """A link as a path, which does not mind where it leads: to itself, or where nobody may look."""
    return Path(entry.path) if entry.is_symlink() else entry
