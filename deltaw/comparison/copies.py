"""Replicates that are copies of each other: they say nothing about seeds.

Two trainings with different seeds never agree in every number of every matrix. Runs whose layers do are one run given
twice, and count once. Scores alone may agree by chance where they lie on a coarse grid, so that equal scores are
only pointed out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from deltaw.comparison.runs import Run
from deltaw.metrics.registry import REGISTRY


def without_copies(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs, each that is a copy of an earlier replicate marked as such; and a warning for each kind of copy."""
    out: list[Run] = []
    seen: dict[tuple[object, str], str] = {}
    copies, alike = [], []
    for run in runs:
        first = run.spec.name
        if (numbers := _numbers(run)) is not None:
            first = seen.setdefault((run.setting, numbers), run.spec.name)
            if first != run.spec.name:
                copies.append(f"{run.spec.name!r} of {first!r}")
        elif (scores := _scores(run)) is not None:
            twin = seen.setdefault((run.setting, scores), run.spec.name)
            if twin != run.spec.name:
                alike.append(f"{run.spec.name!r} and {twin!r}")
        out.append(replace(run, copy_of=first) if first != run.spec.name else run)
    warnings = []
    if copies:
        warnings.append(
            f"Equal in every number of every matrix, and counted once: {_listed(copies)}. A copy is no replicate; give "
            "runs of different seeds."
        )
    if alike:
        warnings.append(f"The same scores to the last digit: {_listed(alike)}. A copy of a run is no replicate.")
    return out, warnings


def _listed(found: Sequence[str]) -> str:
    return ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")


def _numbers(run: Run) -> str | None:
    """A digest of every number of a run's matrices; None where nothing was measured or nothing changed."""
    if run.layers is None or not len(run.layers):
        return None
    columns = [m for m in REGISTRY if m in run.layers.columns and REGISTRY[m].unit != "word"]
    values = run.layers[columns].to_numpy(dtype=np.float64)
    norms = values[:, columns.index("fro_norm")] if "fro_norm" in columns else np.zeros(0)
    norms = norms[np.isfinite(norms)]
    if norms.size and not norms.any():
        return None  # two runs that changed nothing are alike without being copies
    names = "\n".join(map(str, run.layers.index))
    return hashlib.sha256(names.encode() + np.nan_to_num(values, nan=-1.0).tobytes()).hexdigest()


def _scores(run: Run) -> str | None:
    """The scores as a text; None with fewer than two, which may well agree by chance."""
    known = {n: s.value for n, s in run.spec.scores.items() if math.isfinite(s.value)}
    return repr(sorted(known.items())) if len(known) > 1 else None
