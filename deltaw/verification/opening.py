"""A base and an adapter, opened, and what the one does to the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from deltaw.adapters import Adapter, Matched, missing_base, open_adapter, open_base
from deltaw.checkpoints import Checkpoint, as_named, locate
from deltaw.errors import AdapterError, CheckpointError
from deltaw.types import Pair, Reason

Progress = Callable[[int, int, str], None]  # (done, total, name), before each tensor
UNKNOWN = (Reason.BASE_CHANGED_AT_INIT, Reason.BASE_CHANGED, Reason.NO_DELTA, Reason.SHAPE_MISMATCH)


class Updates(NamedTuple):
    """An adapter on its base.

    Attributes:
        base, adapter: Opened.
        matched: All pairs, and what is none with its reason.
        by_name: The pairs of each tensor.
    """

    base: Checkpoint
    adapter: Adapter
    matched: Matched
    by_name: Mapping[str, Sequence[Pair]]


def opened_updates(base: Any, adapter: str | Path | Adapter) -> Updates:
    """Open both.

    Raises:
        CheckpointError: One of the two cannot be opened.
        AdapterError: The adapter does not fit the base, or part of its ΔW cannot be known.
    """
    if not isinstance(adapter, Adapter):
        path, revision = locate(adapter)
        adapter = replace(open_adapter(path), source=as_named(adapter), revision=revision)
    try:
        base = open_base(base)
    except AdapterError:
        raise
    except CheckpointError as e:
        raise CheckpointError(missing_base(e, adapter)) from e
    found = adapter.updates(base)
    for s in found.skipped:
        if s.because in UNKNOWN:
            raise AdapterError(f"{adapter.source}: {s.name} cannot be verified ({s.reason}: {s.detail})")
    updates: dict[str, list[Pair]] = {}
    for pair in found.pairs:
        updates.setdefault(pair.name, []).append(pair)
    return Updates(base, adapter, found, updates)
