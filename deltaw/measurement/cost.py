"""What measuring a pair is expected to cost: operations, bytes, and which small ones are measured together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from deltaw.checkpoints import numeric
from deltaw.types import Pair, is_update

BATCH = 64  # small matrices at a time: what an interruption may lose
RANK = 64  # of factors, where the adapter does not say it


def work(pairs: Iterable[Pair]) -> float:
    """Expected floating-point operations: the entries, and the SVD of dense matrices."""
    return sum(map(_work, pairs))


def bytes_needed(pairs: Iterable[Pair], *, on_data: bool = False) -> int:
    """Expected peak memory: both sides as stored, ΔW, and the solver's workspace; on data also Σxxᵀ and what it meets.

    Args:
        pairs: What is measured together.
        on_data: Whether the inputs of the matrices are met as well, one data set after the other.
    """
    return sum(_bytes(pair) + (_bytes_on_data(pair) if on_data else 0) for pair in pairs)


def batches(pairs: Sequence[Pair], largest: int) -> list[Sequence[Pair]]:
    """Dense pairs of one shape up to `largest` together, as experts and heads are; every other pair by itself."""
    together: dict[Hashable, list[Pair]] = {}
    for p in pairs:
        m, n = p.shape
        small = p.route == "dense" and min(m, n) <= largest
        shape = (m, n, p.dtypes)
        together.setdefault(shape if small else p.key, []).append(p)
    return [batch[i : i + BATCH] for batch in together.values() for i in range(0, len(batch), BATCH)]


def _work(pair: Pair) -> float:
    m, n = pair.shape
    return 50.0 * m * n + (4.0 * m * n * min(m, n) if pair.route == "dense" else 0.0)


def _bytes(pair: Pair) -> int:
    m, n = pair.shape
    if pair.route == "factored":
        rank = pair.ft.rank if is_update(pair.ft) else None
        return 64 * (m + n) * (rank or RANK)
    base, ft = pair.dtypes
    stored = (_itemsize(base) if pair.base is not None else 0) + _itemsize(ft or "float64")  # updates are in float64
    return m * n * (stored + 8) + (24 * min(m, n) ** 2 if pair.route == "dense" else 0)


def _bytes_on_data(pair: Pair) -> int:
    from deltaw.activations.collecting import SKETCH_ABOVE

    m, n = pair.shape
    base = m * n * _itemsize(pair.dtypes[0]) if pair.base is not None and pair.route == "factored" else 0
    return base + 24 * min(n, SKETCH_ABOVE) ** 2 + (8 * m * n if pair.route == "dense" else 0)


def _itemsize(dtype: str) -> int:
    if numeric(dtype) != dtype:
        return 24  # codes: the weight in float32, a scale and a variance for every entry while it is read
    return {"float64": 8, "float32": 4}.get(dtype, 2)
