"""How alike two updates are: subspaces, direction and which entries changed, each beside what chance would give.

* φ = ‖U_aᵀU_b‖F² / r of the top-r left (outputs) and right (inputs) singular subspaces; random: r/d
  (Hu et al. 2021, §7.2). r is the smaller of the two ranks (adapters: theirs; else `signal_rank`), at most 16.
* cosine = ⟨ΔW_a, ΔW_b⟩ / (‖ΔW_a‖ ‖ΔW_b‖); random: 0 with standard deviation 1/√(mn).
* changed_overlap: |a ∩ b| / |a ∪ b| of the entries that changed; random: what two independent sets of these
  sizes share. Empty where an adapter changes every entry.

Updates are read matrix by matrix; two of them are alive at a time, more where the memory allows. Where both are
factored, everything comes from the factors and no matrix is formed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltaw.types import Factors, Pair

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

TOP = 16
CACHE_BYTES = 1 << 30
MEASURES = (
    *("phi_left", "phi_left_null", "phi_right", "phi_right_null", "cosine", "cosine_null"),
    *("changed_overlap", "changed_overlap_null"),
)
COLUMNS = ("run_a", "run_b", "group_a", "group_b", "kind", "n_matrices", *MEASURES)


@dataclass(frozen=True)
class RunUpdates:
    """The updates of one run, by the key that all runs share, and the rank of each that is worth looking at."""

    name: str
    group: str
    pairs: Mapping[str, Pair]
    ranks: Mapping[str, float]


@dataclass(frozen=True)
class LoadedUpdate:
    """One update in memory, with its leading subspaces."""

    value: Tensor | Factors
    norm: float
    U: Tensor
    V: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        parts = self.value if isinstance(self.value, Factors) else (self.value,)
        return sum(t.numel() * t.element_size() for t in (*parts, self.U, self.V))


def similarity_frame(
    sources: Sequence[RunUpdates],
    kinds: Mapping[str, str],
    progress: Callable[[int, int], None] | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> pd.DataFrame:
    """One row per pair of runs and kind of module (and `all`): means over the matrices that both changed.

    Args:
        sources: The runs.
        kinds: The kind of each matrix.
        progress: Called with (done, total) after each matrix.
        cache_bytes: Updates kept in memory beyond the two that are compared.

    Raises:
        DeltaWError: A tensor cannot be read.
    """
    import pandas as pd

    sums: dict[tuple[int, int, str], list[dict[str, float]]] = {}
    keys = list(dict.fromkeys(k for s in sources for k in s.pairs))
    for done, key in enumerate(keys, start=1):
        for i, j, measures in _matrix(sources, key, cache_bytes):
            for kind in (kinds.get(key, "other"), "all"):
                sums.setdefault((i, j, kind), []).append(measures)
        if progress is not None:
            progress(done, len(keys))
    rows = []
    for (i, j, kind), found in sums.items():
        a, b = sources[i], sources[j]
        means = {m: _mean([f[m] for f in found]) for m in MEASURES}
        row = {"run_a": a.name, "run_b": b.name, "group_a": a.group, "group_b": b.group, "kind": kind}
        rows.append(row | {"n_matrices": len(found)} | means)
    return pd.DataFrame(rows, columns=list(COLUMNS)).sort_values(["run_a", "run_b", "kind"], ignore_index=True)


def _mean(values: list[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return sum(known) / len(known) if known else math.nan


def _matrix(sources: Sequence[RunUpdates], key: str, cache_bytes: int) -> Iterator[tuple[int, int, dict[str, float]]]:
    """Every pair of runs that has this matrix."""
    having = [i for i, s in enumerate(sources) if key in s.pairs]
    cache: dict[int, LoadedUpdate | None] = {}

    def get(i: int) -> LoadedUpdate | None:
        if i not in cache:
            found = load(sources[i].pairs[key], sources[i].ranks.get(key, TOP))
            while cache and sum(c.nbytes for c in cache.values() if c) + (found.nbytes if found else 0) > cache_bytes:
                cache.pop(next(iter(cache)))  # the one that was read first
            cache[i] = found
        return cache[i]

    for i, j in itertools.combinations(having, 2):
        a, b = get(i), get(j)
        if a is not None and b is not None:
            yield i, j, measure(a, b)


def load(pair: Pair, rank: float) -> LoadedUpdate | None:
    """Read one update; None if it is no matrix, is zero, or has no direction above rounding.

    Args:
        pair: What to read.
        rank: How many leading directions mean something.

    Raises:
        DeltaWError: A tensor cannot be read.
    """
    import torch

    from deltaw.delta.difference import difference
    from deltaw.spectra import factored_svd
    from deltaw.spectra.krylov import top_triplets

    value = difference(pair, torch.device("cpu")).value
    if value is None:
        return None
    if isinstance(value, Factors):
        value = Factors(value.B.double(), value.A.double())
        thin = factored_svd(value)
        U, Vh, norm = thin.U, thin.Vh, float(thin.S.norm())
    else:
        value = value.to(torch.float32) if value.dtype != torch.float64 else value
        norm = float(torch.linalg.vector_norm(value, dtype=torch.float64))
        if norm > 0:
            # A fixed start, so that the same update gives the same numbers.
            top = top_triplets(value, min(TOP, *value.shape), generator=torch.Generator().manual_seed(0))
            U, Vh = top.U, top.Vh
    if norm == 0 or not math.isfinite(norm):
        return None
    r = int(min(TOP, rank if math.isfinite(rank) else TOP, U.shape[1]))
    return LoadedUpdate(value, norm, U[:, :r].double(), Vh[:r].T.double().contiguous())


def measure(a: LoadedUpdate, b: LoadedUpdate) -> dict[str, float]:
    """The similarity of two updates of one matrix; see the module's docstring."""
    r = min(a.U.shape[1], b.U.shape[1])
    m, n = a.U.shape[0], a.V.shape[0]
    left = _phi(a.U[:, :r], b.U[:, :r])
    right = _phi(a.V[:, :r], b.V[:, :r])
    overlap, null = _changed(a.value, b.value)
    return {
        "phi_left": left,
        "phi_left_null": r / m if r else math.nan,
        "phi_right": right,
        "phi_right_null": r / n if r else math.nan,
        "cosine": inner(a.value, b.value) / (a.norm * b.norm),
        "cosine_null": 1 / math.sqrt(m * n),
        "changed_overlap": overlap,
        "changed_overlap_null": null,
    }


def _phi(u: Tensor, v: Tensor) -> float:
    return min(1.0, float((u.T @ v).square().sum()) / u.shape[1]) if u.shape[1] else math.nan


def inner(a: Tensor | Factors, b: Tensor | Factors) -> float:
    """⟨a, b⟩ in float64; from the factors where there are any."""
    import torch

    if isinstance(a, Factors) and isinstance(b, Factors):
        return float(((a.B.T @ b.B) * (a.A @ b.A.T)).sum())
    if isinstance(a, Factors):
        return inner(b, a)
    if isinstance(b, Factors):
        return float(((b.B.T.to(a.dtype) @ a).double() * b.A).sum())
    # Row by row, so that the products in float64 never fill another matrix.
    rows = (torch.dot(x.double(), y.double()) for x, y in zip(a, b, strict=True))
    return float(sum(rows))


def _changed(a: Tensor | Factors, b: Tensor | Factors) -> tuple[float, float]:
    """(Jaccard index of the changed entries, its value for independent sets of these sizes)."""
    if isinstance(a, Factors) or isinstance(b, Factors):
        return math.nan, math.nan
    x, y = a != 0, b != 0
    both, p, q = (float(t.sum()) / x.numel() for t in (x & y, x, y))
    if p == 1 or q == 1:
        return math.nan, math.nan
    return both / (p + q - both), p * q / (p + q - p * q)


def ranks_of(layers: Any) -> dict[str, float]:
    """How many directions of each matrix mean something: the adapter's rank, else what stands above rounding."""
    adapter = layers["adapter_rank"] if "adapter_rank" in layers.columns else None
    signal = layers["signal_rank"] if "signal_rank" in layers.columns else None
    out: dict[str, float] = {}
    for i, key in enumerate(layers.index):
        known = [float(c.iloc[i]) for c in (adapter, signal) if c is not None and math.isfinite(float(c.iloc[i]))]
        out[str(key)] = known[0] if known else math.nan
    return out
