"""Which weights can be read again to compare the runs with each other, and whether that is worth it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltaw.comparison.naming import own_keys
from deltaw.comparison.runs import Run, Runs
from deltaw.comparison.similarity import COLUMNS, RunUpdates, ranks_of, similarity_frame
from deltaw.documents import Document
from deltaw.errors import DeltaWError, ResultsError
from deltaw.pairs.selection import Selection

if TYPE_CHECKING:
    import pandas as pd

    from deltaw.results.sources import Source

READ_BYTES = 8 << 30  # of stored weights: beyond it similarity is computed only if asked for
MOST_RUNS = 24


def similarity_of(runs: Runs, base: Any, *, wanted: bool | None) -> tuple[pd.DataFrame, str]:
    """The similarity of the runs that stand for their groups, and what a reader should know about it.

    Args:
        runs: The runs.
        base: The base's path or Hub id, if known.
        wanted: True: whatever it costs; False: not at all; None: where the weights are at hand and not too large.
    """
    import pandas as pd

    empty = pd.DataFrame(columns=list(COLUMNS))
    if wanted is False:
        return empty, "Not computed: it was switched off."
    chosen, note = _choose(runs)
    sources, lost = [], []
    for run in chosen:
        source = _source(run, base, runs)
        if source is None:
            lost.append(run.spec.name)
        else:
            sources.append(source)
    if len(sources) < 2:
        return empty, "Not computed: it needs the checkpoints of two runs and their base, not only their results."
    size = sum(p.ft.nbytes for s in sources for p in s.pairs.values() if hasattr(p.ft, "nbytes"))
    if wanted is None and size > READ_BYTES:
        return empty, f"Not computed: {size / 2**30:.0f} GiB of weights would be read; ask for it (--similarity)."
    if lost:
        note = f"{note} Without {', '.join(lost[:5])}{', …' if len(lost) > 5 else ''}: no weights there.".strip()
    table = runs.table
    return similarity_frame(sources, dict(zip(table.keys, table.kind, strict=True))), note


def _choose(runs: Runs) -> tuple[list[Run], str]:
    """The representatives; one per group where they are too many to pair."""
    all_ = [r for g in runs.groups for r in runs.representatives(g) if r.layers is not None]
    if len(all_) <= MOST_RUNS:
        return all_, ""
    one = [next(iter(r for r in runs.representatives(g) if r.layers is not None), None) for g in runs.groups]
    kept = [r for r in one if r is not None][:MOST_RUNS]
    return kept, f"{len(all_)} runs are too many to pair: one run of each of the first {len(kept)} groups is shown."


def _source(run: Run, base: Any, runs: Runs) -> RunUpdates | None:
    """The run's pairs of matrices, or None where its weights or its base are not there any more."""
    from deltaw.measurement.sides import open_sides

    assert run.layers is not None
    ft = run.spec.checkpoint or _path(run.analysed.ft)
    base = base or _path(run.analysed.base)
    if ft is None or base is None:
        return None
    try:
        pairs = open_sides(base, ft).plan(_selection(run)).pairs
    except DeltaWError:
        return None  # moved or changed since it was analysed: its results still stand
    shared = dict(zip(own_keys(run.layers), map(str, run.layers.index), strict=True))
    matrices = {shared[p.key]: p for p in pairs if p.key in shared and len(p.ft.shape) >= 2}
    return RunUpdates(run.spec.name, run.spec.group, matrices, ranks_of(run.layers)) if matrices else None


def _selection(run: Run) -> Selection:
    """What of its two sides was analysed."""
    given = Document(run.analysed.options, run.spec.where, ResultsError)
    return Selection(given.texts("include"), given.texts("exclude"), given.texts("rename"), given.flag("split_fused"))


def _path(side: Source | None) -> str | None:
    """The path that a saved analysis was made from, if it is still there."""
    return side.path if side is not None and side.path and Path(side.path).exists() else None
