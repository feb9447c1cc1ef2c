"""The rows of a survey's table of adapters, and of its spectra by block."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from deltaw.surveys.inputs import Member
from deltaw.surveys.parts import Looked
from deltaw.surveys.table import kind_of, name_of
from deltaw.surveys.tables import ADAPTERS, LEADING, SPECTRA
from deltaw.tensors.names import place
from deltaw.types import Cell, Vector
from deltaw.types import Matrix as Array

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray


def sizes(all_: Sequence[Looked]) -> dict[str, Vector]:
    """The numbers of each adapter by column: sums of squares over its matrices, medians of ranks."""
    return {
        "fro_norm": np.array([math.nan if looked.reason else looked.norm for looked in all_]),
        "relative_change": np.array([_relative(looked) for looked in all_]),
        "effective_rank": np.array([_median(looked.effective_rank) for looked in all_]),
        "energy_at_1": np.array([_median(looked.energy_at_1) for looked in all_]),
        "factor_balance": np.array([_median(looked.factor_balance) for looked in all_]),
        "rank": np.array([max(looked.ranks, default=0) or math.nan for looked in all_]),
    }


def _relative(looked: Looked) -> float:
    """‖ΔW‖F/‖W0‖F over the matrices that change; 0 for an adapter that changes none, NaN without the base."""
    if looked.reason:
        return math.nan
    if not looked.keys:
        return 0.0
    base = float(np.sqrt(looked.base_norms @ looked.base_norms))
    return looked.norm / base if base > 0 else math.nan


def _median(values: Vector) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else math.nan


def adapters_frame(
    members: Sequence[Member],
    all_: Sequence[Looked],
    columns: Mapping[str, Vector],
    flags: Sequence[Mapping[str, str]],
    cluster: Mapping[int, int],
    nearest: Mapping[int, tuple[str, float]],
    at: Mapping[int, Array],
) -> pd.DataFrame:
    """One row of each adapter, in the order in which they were given.

    Args:
        members: Names and sources.
        all_: What is known of each.
        columns: See `sizes`.
        flags: Of each, with the reasons.
        cluster, nearest, at: Cluster, nearest (name and cosine) and place on the map of those that have numbers.
    """
    import pandas as pd

    rows = []
    for i, (member, looked) in enumerate(zip(members, all_, strict=True)):
        close = nearest.get(i, ("", math.nan))
        row: dict[str, Cell] = {name: float(values[i]) for name, values in columns.items()}
        row |= {
            "name": member.name,
            "matrices": len(looked.keys) if not looked.reason else math.nan,
            "cluster": cluster.get(i, math.nan),
            "nearest": close[0],
            "nearest_cosine": close[1],
            "flags": " ".join(flags[i]),
            "why": "; ".join(f"{word}: {why}" for word, why in flags[i].items()),
            "method": looked.method,
            "format": looked.format,
            "base_name": looked.base_name,
            "parameters": looked.parameters if not looked.reason else math.nan,
            "untrained": looked.untrained,
            "reason": looked.reason,
            "notes": "; ".join(looked.notes),
            "source": member.source,
        }
        here = at.get(i, np.full(4, math.nan))
        rows.append(row | {f"map_{axis + 1}": float(here[axis]) for axis in range(4)})
    return pd.DataFrame(rows, columns=list(ADAPTERS))


def spectra_frame(names: Sequence[str], all_: Sequence[Looked]) -> pd.DataFrame:
    """‖ΔW‖F, ‖W0‖F and the leading σ by adapter, block and kind of module.

    σ_i is the root mean square over the matrices of a block and kind, so that its squares add up to their mean energy.
    """
    import pandas as pd

    parts = []
    for name, looked in zip(names, all_, strict=True):
        if not looked.keys:
            continue
        places = [place(name_of(key)).layer for key in looked.keys]
        frame = pd.DataFrame(
            {
                "layer": [math.nan if layer is None else float(layer) for layer in places],
                "kind": [kind_of(key) for key in looked.keys],
                "matrices": 1,
                "fro_norm": looked.norms**2,
                "base_fro_norm": looked.base_norms**2,
            }
        )
        squares: NDArray[np.float64] = looked.sigma[:, :LEADING] ** 2
        for i in range(LEADING):
            frame[f"sigma_{i + 1}"] = squares[:, i]
        found = frame.groupby(["layer", "kind"], dropna=False, sort=True).sum(min_count=1).reset_index()
        found.insert(0, "name", name)
        parts.append(found)
    if not parts:
        return pd.DataFrame(columns=list(SPECTRA))
    out = pd.concat(parts, ignore_index=True)
    for i in range(LEADING):
        out[f"sigma_{i + 1}"] = np.sqrt(out[f"sigma_{i + 1}"] / out["matrices"])
    for column in ("fro_norm", "base_fro_norm"):
        out[column] = np.sqrt(out[column])
    return out[list(SPECTRA)]


def neighbours_frame(
    names: Sequence[str], order: NDArray[np.int64], cosine: NDArray[np.floating], half: NDArray[np.floating]
) -> pd.DataFrame:
    """The nearest of each, the nearest first.

    Args:
        names: Of the adapters.
        order: The numbers of the nearest, (N, ≤ 20); −1 for none.
        cosine, half: Of all pairs, and half of the interval's width.
    """
    import pandas as pd

    i, rank = np.nonzero(order >= 0)
    j = order[i, rank]
    all_names = np.array(names, dtype=object)
    value, width = cosine[i, j].astype(np.float64), half[i, j].astype(np.float64)
    return pd.DataFrame(
        {
            "name": all_names[i],
            "neighbour": all_names[j],
            "cosine": value,
            "cosine_low": np.clip(value - width, -1, 1),
            "cosine_high": np.clip(value + width, -1, 1),
        }
    )
