"""The numbers that the sentences of a report are made of, computed once from the table of layers."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deltaw.reports.layers import Layers

if TYPE_CHECKING:
    import pandas as pd

NAN = math.nan
ONE_SIDED = ("only_in_base", "only_in_ft")
ADAPTER_RANKS = (1, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Spread:
    """A median with the middle 80 % and the extremes of a set of numbers; NaN where there is none."""

    median: float = NAN
    p10: float = NAN
    p90: float = NAN
    low: float = NAN
    high: float = NAN
    count: int = 0

    @classmethod
    def of(cls, values: pd.Series) -> Spread:
        """The spread of the known values."""
        known = values.astype(float).dropna()
        if not len(known):
            return cls()
        q = known.quantile([0.5, 0.1, 0.9]).tolist()
        return cls(q[0], q[1], q[2], float(known.min()), float(known.max()), len(known))


@dataclass(frozen=True)
class Facts:
    """Counts, and spreads over the changed matrices (ranks: over those that stand clear of rounding).

    Attributes:
        tensors, matrices, vectors: Rows of the table.
        changed_matrices, changed_vectors: Those with ΔW ≠ 0.
        changed_kinds, kinds: Module kinds, of the changed matrices and of all.
        change: `relative_change`. `top`: the matrix with the largest, and its value.
        equal: `unchanged_fraction`.
        cosine: cos(W, W0) of whole matrices, (1 − shrinkage)/(1 + norm_growth).
        along_base: cos²(ΔW, W0), the share of the update's energy that only rescales W0.
        shrinkage: The factor c.
        rounding: rounding_noise²/‖ΔW‖F², the share of energy that rounding explains.
        beyond: Energy below the noise edge over rounding_noise².
        resolved, noisy, below: Changed matrices by `resolution`.
        signal_rank, signal_energy, signal_share: The last is signal_rank/k.
        rank_90, rank_90_null, rank_90_ratio, effective_rank, dimensions: Of the clear matrices; the last is k.
        energy_at: `energy_at_r` by r, of the clear matrices.
        dtypes: Stored dtypes of the changed matrices, the commonest first.
        adapters: Adapter types, the commonest first; `adapter_rank`: their ranks.
        factored: Changed matrices read from factors.
        estimated: Matrices of which ranks are estimates.
        failed, mismatched, skipped: Tensors without a row.
        one_sided: Names; empty for an adapter, which leaves tensors alone.
        intruders: Sum over matrices; NaN without `--alignment`.
        has_base: Whether W0 is known.
    """

    tensors: int = 0
    matrices: int = 0
    vectors: int = 0
    changed_matrices: int = 0
    changed_vectors: int = 0
    kinds: tuple[str, ...] = ()
    changed_kinds: tuple[str, ...] = ()
    change: Spread = Spread()
    top: tuple[str, float] = ("", NAN)
    equal: Spread = Spread()
    cosine: Spread = Spread()
    along_base: Spread = Spread()
    shrinkage: Spread = Spread()
    rounding: Spread = Spread()
    beyond: Spread = Spread()
    resolved: int = 0
    noisy: int = 0
    below: int = 0
    signal_rank: Spread = Spread()
    signal_energy: Spread = Spread()
    signal_share: Spread = Spread()
    rank_90: Spread = Spread()
    rank_90_null: Spread = Spread()
    rank_90_ratio: Spread = Spread()
    rank_90_residual: Spread = Spread()
    effective_rank: Spread = Spread()
    dimensions: Spread = Spread()
    energy_at: dict[int, Spread] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    adapter_rank: Spread = Spread()
    factored: int = 0
    estimated: int = 0
    failed: int = 0
    one_sided: tuple[str, ...] = ()
    mismatched: int = 0
    skipped: int = 0
    intruders: float = NAN
    has_base: bool = True

    @property
    def changed(self) -> int:
        """Tensors with ΔW ≠ 0."""
        return self.changed_matrices + self.changed_vectors


def gather(layers: Layers) -> Facts:
    """The facts of an analysis."""
    changed, clear = layers.changed, layers.clear
    resolution = Counter(changed["resolution"])
    reasons = Counter(s.reason.split(":")[0].split(" ")[0] for s in layers.analysis.skipped)
    adapters = _commonest(changed["adapter_type"]) if "adapter_type" in changed else ()
    return Facts(
        tensors=len(layers.frame),
        matrices=len(layers.matrices),
        vectors=len(layers.vectors),
        changed_matrices=len(changed),
        changed_vectors=int(layers.vectors["changed"].sum()),
        kinds=tuple(dict.fromkeys(layers.matrices["kind"])),
        changed_kinds=tuple(dict.fromkeys(changed["kind"])),
        top=_top(changed),
        **_spreads(changed, clear),
        resolved=resolution["resolved"],
        noisy=resolution["noisy"],
        below=resolution["below_precision"],
        energy_at={r: Spread.of(clear[f"energy_at_{r}"]) for r in ADAPTER_RANKS if f"energy_at_{r}" in clear},
        dtypes=_commonest(changed["ft_dtype"]),
        adapters=adapters,
        factored=int((changed["route"] == "factored").sum()),
        estimated=int((changed["method"] == "estimate").sum()),
        failed=reasons["failed"],
        one_sided=() if adapters else tuple(s.name for s in layers.analysis.skipped if s.reason in ONE_SIDED),
        mismatched=reasons["shape_mismatch"],
        skipped=len(layers.analysis.skipped),
        intruders=_total(changed, "intruders"),
        has_base=bool(layers.analysis.base) or bool(layers.frame["base_fro_norm"].notna().any()),
    )


def _spreads(changed: pd.DataFrame, clear: pd.DataFrame) -> dict[str, Spread]:
    size = changed["fro_norm"] ** 2
    noise = changed["rounding_noise"] ** 2
    k = changed[["rows", "cols"]].min(axis=1)
    stored = noise.where(noise > 0)
    values = {
        "change": changed["relative_change"],
        "equal": changed["unchanged_fraction"],
        "cosine": (1 - changed["shrinkage"]) / (1 + changed["norm_growth"]),
        "along_base": changed["cosine_to_base"] ** 2,
        "shrinkage": changed["shrinkage"],
        "rounding": noise / size,
        "beyond": (1 - changed["signal_energy"]) * size / stored,
        "signal_rank": changed["signal_rank"],
        "signal_energy": changed["signal_energy"],
        "signal_share": changed["signal_rank"] / k,
        "adapter_rank": changed["adapter_rank"] if "adapter_rank" in changed else changed["fro_norm"] * NAN,
        "dimensions": clear[["rows", "cols"]].min(axis=1),
    }
    ranks = ("rank_90", "rank_90_null", "rank_90_ratio", "rank_90_residual", "effective_rank")
    values |= {name: clear[name] for name in ranks}
    return {name: Spread.of(v) for name, v in values.items()}


def _top(changed: pd.DataFrame) -> tuple[str, float]:
    known = changed["relative_change"].dropna()
    if not len(known):
        return "", NAN
    at = int(known.to_numpy().argmax())
    return str(changed.loc[known.index[at], "key"]), float(known.iloc[at])


def _commonest(values: pd.Series) -> tuple[str, ...]:
    return tuple(v for v, _ in Counter(v for v in values.astype(str) if v).most_common())


def _total(frame: pd.DataFrame, name: str) -> float:
    return float(frame[name].sum()) if name in frame and frame[name].notna().any() else NAN
