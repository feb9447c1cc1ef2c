"""How much of the base was compared: what was asked for, and what of it has a row or is known to be unchanged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod

from deltaw.tensors.slices import Slice
from deltaw.types import Coverage, Handle, Pair


@dataclass(frozen=True)
class Extent:
    """What there is to compare.

    Attributes:
        base: Numbers by the memory of every floating tensor of the base that was asked for; tied ones are one.
        unchanged: Of these the numbers that an adapter leaves as they are.
        ft_tensors, ft_numbers: Floating tensors of the fine-tuned side, or of the adapter.
    """

    base: Mapping[Hashable, int] = field(default_factory=dict)
    unchanged: Mapping[Hashable, int] = field(default_factory=dict)
    ft_tensors: int = 0
    ft_numbers: int = 0


def extent(base: Iterable[Handle], ft: Iterable[Handle]) -> Extent:
    """The extent of two sides, by the floating tensors that were asked for."""
    sizes = {h.storage: prod(h.shape) for h in base}
    other = {h.storage: prod(h.shape) for h in ft}
    return Extent(sizes, {}, len(other), sum(other.values()))


def by_adapter(extent: Extent, touched: Iterable[Pair], unknown: Collection[Hashable]) -> Extent:
    """The same where the fine-tuned side is an adapter: what it does not touch is unchanged by construction.

    Args:
        extent: Of the base and the adapter's own tensors.
        touched: What it changes.
        unknown: The memories that it changes in a way that is not known.
    """
    seen = _numbers(touched)
    left = {m: 0 if m in unknown else max(0, n - seen.get(m, 0)) for m, n in extent.base.items()}
    return replace(extent, unchanged=left)


def _numbers(pairs: Iterable[Pair]) -> dict[Hashable, int]:
    seen: dict[Hashable, int] = defaultdict(int)
    for pair in pairs:
        if pair.base is not None:
            seen[memory(pair.base)] += prod(pair.shape)
    return dict(seen)


def coverage(extent: Extent, pairs: Iterable[Pair]) -> Coverage:
    """How much of it these pairs compare."""
    seen = _numbers(pairs)
    compared = {m: min(n, extent.unchanged.get(m, 0) + seen.get(m, 0)) for m, n in extent.base.items()}
    return Coverage(
        compared_tensors=sum(compared[m] > 0 or not n for m, n in extent.base.items()),
        tensors=len(extent.base),
        compared_numbers=sum(compared.values()),
        numbers=sum(extent.base.values()),
        ft_tensors=extent.ft_tensors,
        ft_numbers=extent.ft_numbers,
    )


def memory(handle: Handle) -> Hashable:
    """The memory of the stored tensor that a handle shows, in whole or in part."""
    while isinstance(handle, Slice):
        handle = handle.handle
    return handle.storage
