"""One adapter against the base: the matrices that it changes, by names that all adapters share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import PurePath

from deltaw.adapters import Adapter, open_adapter
from deltaw.checkpoints import Checkpoint, locate
from deltaw.errors import DeltaWError
from deltaw.measurement.sides import open_sides
from deltaw.pairs.selection import Selection
from deltaw.results.sources import Source
from deltaw.types import Pair, is_update, matrix_key

STATED = {"kohya": ".alpha", "diffusers": ".alpha"}


@dataclass(frozen=True)
class OpenedAdapter:
    """An adapter, headers only.

    Attributes:
        source: What was opened.
        pairs: The matrices that it may change, by the base's names.
        unscaled: Whether it says nowhere how its factors are scaled.
        numbers: How many numbers it stores: of an adapter, or of the matrices of a full checkpoint.
    """

    source: Source
    pairs: Mapping[str, Pair]
    unscaled: bool
    numbers: int


def open_member(base: Checkpoint | None, source: str, selection: Selection) -> OpenedAdapter:
    """Open one adapter or fine-tune against the base.

    Raises:
        DeltaWError: It cannot be opened, or nothing of it fits the base.
    """
    sides = open_sides(base, source)
    found = sides.plan(selection).pairs
    matrices = [p for p in found if p.route != "vector"]
    keys = (matrix_key(p.name if is_update(p.ft) or p.base is None else p.base.name, p.view.part) for p in matrices)
    unscaled = isinstance(sides.ft, Adapter) and not _states_scale(sides.ft)
    stored = sides.ft.tensors.values() if isinstance(sides.ft, Adapter) else [p.ft for p in matrices]
    numbers = sum(prod(h.shape) for h in stored)
    return OpenedAdapter(sides.sources[1], dict(zip(keys, matrices, strict=True)), unscaled, numbers)


def _states_scale(adapter: Adapter) -> bool:
    """Whether an adapter says its α: in its config, or as tensors."""
    if adapter.format in STATED:
        return bool(adapter.config) or any(n.endswith(STATED[adapter.format]) for n in adapter.tensors)
    if adapter.config.text("peft_type") != "LORA" or adapter.config.says("use_mora"):
        return True
    return "lora_alpha" in adapter.config or adapter.config.says("alpha_pattern")


def fits_alone(source: str) -> bool:
    """Whether an adapter that does not fit the base is whole in itself: it was made for another base."""
    try:
        open_adapter(locate(source)[0]).updates(None)
    except DeltaWError:
        return False
    return True


def same_base(named: str | None, others: str | None) -> bool:
    """Whether two names of bases may mean the same one: the last parts of an id or path are equal, or one has none."""
    return not named or not others or last_part(named) == last_part(others)


def last_part(name: str) -> str:
    """What a base is called, whoever holds it: the last part of an id or path, without its revision."""
    return PurePath(name.replace("\\", "/").rstrip("/").partition("@")[0]).name.casefold()
