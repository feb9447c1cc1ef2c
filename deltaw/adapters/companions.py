"""Trained weights in files beside an adapter.

LLaVA's trainer keeps what it trained whole in `non_lora_trainables.bin`, which is read with the adapter. Of any other
file only the names are: a tensor of the base that one of them holds may have changed, so that nothing is said of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from deltaw.adapters.base import Base
from deltaw.adapters.keys import saved_name
from deltaw.checkpoints import Checkpoint
from deltaw.checkpoints.beside import NOT_WEIGHTS
from deltaw.checkpoints.kinds import holds_tensors
from deltaw.checkpoints.reading import read_file
from deltaw.errors import AdapterError, DeltaWError
from deltaw.types import Reason, Skipped, counted

READ = re.compile(r"^non_lora_(trainables|state_dict)\.(bin|pt|safetensors)$")
LARGEST = 10_000  # names of one file; of a whole model there are fewer

Open = Callable[[Path], Checkpoint]


def with_companions(folder: Path, own: Checkpoint, open_tensors: Open) -> tuple[Checkpoint, list[Path]]:
    """An adapter's tensors with those that were trained whole beside them, and the files that they are from.

    Raises:
        AdapterError: Two files hold a tensor of one name.
        CheckpointError: A file cannot be opened.
    """
    files = sorted(p for p in folder.iterdir() if READ.match(p.name) and p.is_file())
    for path in files:
        found = open_tensors(path)
        if twice := own.tensors.keys() & found.tensors.keys():
            raise AdapterError(f"{folder}: {min(twice)!r} is in the adapter and in {path.name}; take one of them out")
        note = f"{path.name}: read with the adapter ({counted(len(found.tensors), 'tensor')}, trained whole)"
        own = replace(
            own,
            tensors={**own.tensors, **found.tensors},
            notes=(*own.notes, *found.notes, note),
            files=(*own.files, *found.files),
        )
    return own, files


def names_beside(folder: Path, read: Collection[Path]) -> dict[str, tuple[str, ...]]:
    """What the other files with tensors in a directory hold: the base's names of them, by file."""
    out: dict[str, tuple[str, ...]] = {}
    for path in sorted(folder.iterdir()):
        if path in read or NOT_WEIGHTS.search(path.name) or not isinstance(holds_tensors(path), str):
            continue
        try:
            names = list(read_file(path)[0])
        except DeltaWError:  # the note on what lies beside says what is wrong with it
            continue
        out[path.name] = tuple(saved_name(n) for n in names[:LARGEST])
    return out


def not_read(beside: Mapping[str, tuple[str, ...]], base: Base, touched: Collection[str]) -> list[Skipped]:
    """The tensors of the base that files beside an adapter hold, too.

    Args:
        beside: The names in each file.
        base: The base.
        touched: What the adapter changes. A file that holds one of them is a whole model, and no part of the adapter.
    """
    out = []
    for file, names in beside.items():
        found = [at for n in names if (at := base.find(n)) is not None]
        if not set(found) & set(touched):
            why = f"{file} beside the adapter holds a weight of this name, and is not read"
            out += [Skipped(at, Reason.BASE_CHANGED, why) for at in found]
    return out
