"""What stands out, by rules that are written out: a word for each, and why it is said."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from deltaw.surveys.opened import last_part, same_base
from deltaw.surveys.parts import Looked
from deltaw.types import Vector

if TYPE_CHECKING:
    import pandas as pd

DUPLICATE = 0.999  # cosine above which two are one
DIVERGED = 1.0  # relative change above which an update is larger than what it changes
OUTLIER = 5.0  # median absolute deviations, scaled to a normal distribution's σ
ENOUGH = 20  # adapters from which a deviation from the median says something
MAD = 1.4826022185056018
OF_NORMAL = {"relative_change": True, "fro_norm": True, "effective_rank": False, "energy_at_1": False}  # log or not
RULES: Mapping[str, str] = {
    "failed": "it cannot be read; the reason stands beside it",
    "zero": "ΔW is 0 in every matrix",
    "untrained_B": "B is 0 in at least one matrix, as before the first step",
    "duplicate": f"its cosine with another is above {DUPLICATE}, over more than {DUPLICATE} of the energy of both",
    "diverged": f"an entry is not finite, or the update is as large as the weights: relative change above {DIVERGED:g}",
    "unscaled": "it says its α nowhere, so that the library's default is taken",
    "other_base": "it does not fit the base, or names another one than the base and most of the others",
    "outlier": (
        f"its size, effective rank or energy at rank 1 lies more than {OUTLIER:g} scaled median absolute deviations "
        f"from the median of at least {ENOUGH} adapters"
    ),
}


def flags(
    all_: Sequence[Looked], columns: Mapping[str, Vector], copies: Mapping[int, str], base_name: str
) -> list[dict[str, str]]:
    """Of each adapter the flags that hold, in the order of the rules, and why.

    Args:
        all_: The adapters.
        columns: `relative_change`, `fro_norm`, `effective_rank` and `energy_at_1` of each; NaN where not known.
        copies: What an adapter is a copy of, by its number.
        base_name: What the base is called; empty without one, where most of the adapters decide alone.
    """
    usual = _usual(all_)
    far = _far(columns)
    out = []
    for i, looked in enumerate(all_):
        found: dict[str, str] = {}
        if looked.reason:
            found["failed"] = looked.reason
        if not looked.reason and not looked.keys:
            found["zero"] = "no matrix is changed"
        if looked.untrained:
            found["untrained_B"] = f"B = 0 in {looked.untrained} of {looked.untrained + len(looked.keys)} matrices"
        if i in copies:
            found["duplicate"] = copies[i]
        change = columns["relative_change"][i]
        if looked.nonfinite or change > DIVERGED:
            found["diverged"] = "entries are not finite" if looked.nonfinite else f"relative change {change:.3g}"
        if looked.unscaled:
            found["unscaled"] = "no α is stated"
        if looked.other_base:
            found["other_base"] = "it does not fit the base"
        elif not (base_name and same_base(looked.base_name, base_name)) and not same_base(looked.base_name, usual):
            found["other_base"] = f"it names {looked.base_name}"
        if far[i]:
            found["outlier"] = far[i]
        out.append({word: found[word] for word in RULES if word in found})
    return out


def _usual(all_: Sequence[Looked]) -> str:
    """The base that most of the adapters name; empty where they do not agree."""
    names = [last_part(looked.base_name) for looked in all_ if looked.base_name]
    most = max(sorted(set(names)), key=names.count, default="")
    return most if 2 * names.count(most) > len(names) else ""


def _far(columns: Mapping[str, Vector]) -> list[str]:
    """What of each adapter lies far from the median of all; empty where nothing does."""
    count = len(next(iter(columns.values())))
    out: list[list[str]] = [[] for _ in range(count)]
    for name, log in OF_NORMAL.items():
        values = columns[name]
        if name == "fro_norm" and np.isfinite(columns["relative_change"]).any():
            continue  # the same, told once
        with np.errstate(divide="ignore", invalid="ignore"):
            x = np.log(values) if log else values
        known = x[np.isfinite(x)]
        if known.size < ENOUGH:
            continue
        middle = float(np.median(known))
        spread = MAD * float(np.median(np.abs(known - middle)))
        if not spread > 0:
            continue
        for i in np.flatnonzero(np.abs(x - middle) > OUTLIER * spread):
            if math.isfinite(values[i]):
                typical = math.exp(middle) if log else middle
                out[int(i)].append(f"{name} {values[i]:.3g}, the median is {typical:.3g}")
    return ["; ".join(found) for found in out]


def copies(pairs: pd.DataFrame, names: Sequence[str]) -> dict[int, str]:
    """What each adapter is a copy of: the closest of those whose cosine says so, and how their sizes relate."""
    place = {name: i for i, name in enumerate(names)}
    sure = pairs["cosine"].where(pairs["exact"], pairs["cosine_low"])
    shared = np.minimum(pairs["shared_a"], pairs["shared_b"])
    found: dict[int, str] = {}
    alike = pairs[(sure > DUPLICATE) & (shared > DUPLICATE)].sort_values("cosine", ascending=False, kind="stable")
    for row in alike.itertuples():
        for one, other in ((row.a, row.b), (row.b, row.a)):
            found.setdefault(place[str(one)], f"of {other} (cosine {float(str(row.cosine)):.6g})")
    return found
