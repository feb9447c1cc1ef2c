"""What rank would have been enough? Per module, the rank that keeps 90, 95 or 99 % of the energy above rounding."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltaw.reports.curves import rank_above_noise
from deltaw.reports.layers import Layers
from deltaw.reports.order import place

if TYPE_CHECKING:
    import pandas as pd

SHARES = (0.9, 0.95, 0.99)
ADAPTED = ("attention", "mlp", "conv", "other")  # embeddings and heads are commonly trained whole (`modules_to_save`)


@dataclass(frozen=True)
class Need:
    """One module over its layers.

    Attributes:
        module: The row of the heatmap; experts' numbers are `*`.
        kind: Its module kind.
        count: Its matrices that rounding leaves readable. `hidden`: those that changed but are mostly rounding.
        rows, cols: The typical shape.
        median, most: The rank by share: of the typical layer, and what is enough for every layer.
    """

    module: str
    kind: str
    count: int
    hidden: int
    rows: int
    cols: int
    median: Mapping[float, float]
    most: Mapping[float, float]


def needs(layers: Layers) -> list[Need]:
    """The table, in the order of the network."""
    out = []
    for module, rows in layers.changed.groupby("slot", sort=False):
        clear = rows[(rows["resolution"] != "below_precision") & rows["key"].isin(layers.analysis.spectra)]
        ranks = {q: [_rank(layers, row, q) for _, row in clear.iterrows()] for q in SHARES}
        known = {q: sorted(r for r in values if not math.isnan(r)) for q, values in ranks.items()}
        m, n = int(rows["rows"].median()), int(rows["cols"].median())
        out.append(
            Need(
                module=str(module),
                kind=str(rows["kind"].iloc[0]),
                count=len(clear),
                hidden=len(rows) - len(clear),
                rows=m,
                cols=n,
                median={q: v[len(v) // 2] if v else math.nan for q, v in known.items()},
                # An unknown rank among them leaves the largest unknown.
                most={q: v[-1] if v and len(v) == len(ranks[q]) else math.nan for q, v in known.items()},
            )
        )
    return sorted(out, key=lambda need: place(need.module, need.kind))


def _rank(layers: Layers, row: pd.Series, q: float) -> float:
    return rank_above_noise(layers.analysis.spectra[str(row["key"])], float(row["signal_rank"]), q)


def rank_pattern(table: list[Need], share: float) -> str:
    """A PEFT `rank_pattern` as JSON: for each adapted module the rank that is enough in every layer.

    PEFT matches a key as a regular expression at the end of a module's name.
    """
    pattern: dict[str, int] = {}
    for need in table:
        if need.kind in ADAPTED and need.most[share] >= 1:
            key = _regex(need.module)  # parts of a fused module share its adapter
            pattern[key] = max(int(need.most[share]), pattern.get(key, 0))
    # PEFT takes the first key that matches: `attention.output.dense` has to come before `output.dense`.
    ordered = dict(sorted(pattern.items(), key=lambda item: -len(item[0])))
    return json.dumps(ordered, indent=2)


def adapter_size(table: list[Need], share: float) -> float:
    """Parameters of adapters of those ranks over those of the matrices that they adapt; NaN where there are none."""
    adapted = [n for n in table if n.kind in ADAPTED and n.most[share] >= 1]
    whole = sum(n.count * n.rows * n.cols for n in adapted)
    return sum(n.count * n.most[share] * (n.rows + n.cols) for n in adapted) / whole if whole else math.nan


def _regex(module: str) -> str:
    """A key that matches this module only; dots are left as they are, as PEFT's own examples do."""
    bare = re.sub(r"\[.*\]$", "", module)
    return re.sub(r"[^\w.*-]", lambda m: re.escape(m[0]), bare).replace("*", r"\d+")
