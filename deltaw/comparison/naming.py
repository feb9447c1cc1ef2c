"""One key for a layer in all runs: without what wrappers put into its name, and with `model.` in all or in none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from deltaw.comparison.runs import Run
from deltaw.pairs.matching import join
from deltaw.tensors.names import unwrap
from deltaw.types import ENOUGH, floored_percent, matrix_key, matrix_label

if TYPE_CHECKING:
    import pandas as pd


def own_keys(layers: pd.DataFrame) -> list[str]:
    """The keys of a table's rows by the names that the run itself has."""
    part = layers["part"].fillna("").astype(str)
    return [matrix_key(str(n), p) for n, p in zip(layers["name"], part, strict=True)]


def aligned(runs: Sequence[Run]) -> list[Run]:
    """The runs with keys that are equal for the same layer, matched by the rules by which checkpoints are paired."""
    known: dict[str, None] = {}
    out = []
    for run in runs:
        if run.layers is None:
            out.append(run)
            continue
        names = list(dict.fromkeys(map(str, run.layers["name"])))
        found = join(known, dict.fromkeys(names))
        common = dict(found.pairs)
        for name in found.right:
            short = unwrap(name)
            common[name] = name if short in known else short
            known[common[name]] = None
        frame = run.layers.copy(deep=False)
        part = frame["part"].fillna("").astype(str)
        keys = [matrix_label(common[str(n)], p) for n, p in zip(frame["name"], part, strict=True)]
        out.append(replace(run, layers=frame.set_axis(keys, axis=0).rename_axis("key")))
    return out


def partial(runs: Sequence[Run]) -> list[str]:
    """A warning on each run of which only a part of the base was compared: its numbers are of that part."""
    shares = {run.spec.name: run.analysed.compared for run in runs if run.analysed.compared < ENOUGH}
    return [
        f"Run {name!r} compares only {floored_percent(share)} of its base: what is said of it is about that part."
        for name, share in shares.items()
    ]


def unshared(runs: Sequence[Run]) -> list[str]:
    """A warning where groups share no layer: their contrasts are missing, which should not go unseen."""
    keys: dict[str, set[str]] = {}
    for run in runs:
        if run.layers is not None and len(run.layers):
            keys.setdefault(run.spec.group, set()).update(map(str, run.layers.index))
    groups = list(keys)
    apart = [(a, b) for i, a in enumerate(groups) for b in groups[i + 1 :] if not keys[a] & keys[b]]
    if not apart:
        return []
    (a, b), more = apart[0], f" (and {len(apart) - 1} more pairs)" if len(apart) > 1 else ""
    names = f"for example {min(keys[a])} and {min(keys[b])}"
    return [f"Groups {a!r} and {b!r}{more} share no layer ({names}): there are no contrasts between them."]
