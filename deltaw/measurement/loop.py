"""The loop: a map over independent matrices, by threads that share the cores and a memory budget, or on a cluster.

Each unit reads its own tensors, and only what a row and a spectrum need outlives it, so that peak memory follows the
largest tensors and not the model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from deltaw.measurement.cost import batches, bytes_needed, work
from deltaw.measurement.distributed import OnCluster
from deltaw.measurement.dividing import units_of
from deltaw.measurement.engines.sharing import Workers
from deltaw.measurement.journal import Journal
from deltaw.measurement.measured import Measured
from deltaw.measurement.options import Options
from deltaw.results.shares import Share
from deltaw.types import Pair

if TYPE_CHECKING:
    import torch

log = logging.getLogger("deltaw")

# Matrices at a time on a GPU. Exactly, one is read while the GPU computes the other, and a second stream gains nothing.
# An estimate is much Python between short products: of a 7B pair on an H100, 2, 3 and 4 at a time took 17.8, 14.9 and
# 12.7 seconds beyond reading, and 1.5, 1.9 and 2.1 GB.
JOBS_PER_GPU = {"exact": 2, "fast": 4}


class Progress(NamedTuple):
    """How far a run is; work is in expected floating-point operations."""

    done: int
    total: int
    work_done: float
    work_total: float
    name: str


def measure_all(
    pairs: Sequence[Pair],
    options: Options,
    workers: Workers | OnCluster,
    journal: Journal | None,
    progress: Callable[[Progress], None] | None,
    share: Share | None = None,
    ahead: int = 0,
) -> dict[str, Measured]:
    """Measure what the journal does not have yet.

    Args:
        pairs: What is to be measured.
        options: Of the analysis.
        workers: Where, and how many matrices at a time.
        journal: What is finished is kept there; None to keep nothing.
        progress: Called after each matrix.
        share: Of the pairs, only those of this share.
        ahead: Matrices in work beyond those that compute, see `share_out`.

    Returns:
        What came of each pair, by its key.
    """
    from deltaw.measurement.measure import measure
    from deltaw.spectra.route import BATCHED_UP_TO

    _ = options.vectors  # found before there are threads
    together = batches(pairs, BATCHED_UP_TO.get(workers.device_type, 0))
    mine = together if share is None else units_of(share, together)
    kept = journal.done if journal else {}
    measured = {p.key: kept[p.key] for unit in mine for p in unit if p.key in kept}
    # A batch is measured whole or not at all: in other company, a matrix would differ in its last digits.
    todo = [b for b in mine if not all(p.key in measured for p in b)]
    total, work_total = sum(map(len, mine)), sum(map(work, mine))
    work_done = work_total - sum(map(work, todo))
    if measured:
        log.info("%d of %d matrices were finished by an earlier run", len(measured), total)

    def several(batch: Sequence[Pair], device: torch.device) -> list[Measured]:
        results = measure(batch, options, device)
        keep(batch, results)
        return results

    def keep(batch: Sequence[Pair], results: Sequence[Measured]) -> None:
        if journal is not None:
            for pair, result in zip(batch, results, strict=True):
                journal.add(pair.key, result)

    def finished(batch: Sequence[Pair], results: Sequence[Measured]) -> None:
        nonlocal work_done
        for pair, result in zip(batch, results, strict=True):
            measured[pair.key] = result
            work_done += work([pair])
            if result.skipped:
                log.info("%s: %s", result.skipped.name, result.skipped.reason)
            if progress is not None:
                progress(Progress(len(measured), total, work_done, work_total, pair.label))

    need = partial(bytes_needed, on_data=bool(options.data))
    total_work, most, per_gpu = work(pairs), len(together), JOBS_PER_GPU[options.mode]  # of all shares
    if isinstance(workers, OnCluster):
        with closing(workers.measure(pairs, todo, need, total=total_work, most=most, per_gpu=per_gpu)) as found:
            for batch, results in found:
                keep(batch, results)
                finished(batch, results)
        return measured
    workers.share_out(
        several,
        todo,
        finished,
        work=work,
        need=need,
        total=total_work,  # threads decide the last digits too
        most=most,
        per_gpu=per_gpu,
        ahead=ahead,
    )
    return measured
