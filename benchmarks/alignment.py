"""What `--alignment` costs, in full float64 SVDs of the same matrix, and what the other new columns cost.

    python benchmarks/alignment.py [SIZE ...]

Targets: at most 2.5 full SVDs per matrix on a cold cache of the base's vectors, 1.3 on a warm one; the precision and
regularisation columns at most 30 % of the analysis.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from deltaw.alignment.alignment import align
from deltaw.alignment.cache import BaseCache
from deltaw.delta.sums import compute_dtype, sweep
from deltaw.metrics import evaluate
from deltaw.metrics.quantities import Quantities
from deltaw.spectra import singular_values

REPEATS = 4


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of the fastest of some runs on one core: what else the machine does only ever adds."""
    found = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def pair(rows: int, cols: int, rank: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """A bf16 base and its fine-tune: low-rank, or of full rank."""
    g = torch.Generator().manual_seed(0)
    w0 = (0.02 * torch.randn(rows, cols, generator=g)).bfloat16()
    if rank is None:
        update = torch.randn(rows, cols, generator=g)
    else:
        update = torch.randn(rows, rank, generator=g) @ torch.randn(rank, cols, generator=g)
    update *= 0.02 * w0.float().norm() / update.norm()
    return w0, (w0.float() + update).bfloat16()


def alignment_row(rows: int, cols: int, rank: int | None) -> str:
    w0, w = pair(rows, cols, rank)
    delta = w.float() - w0.float()
    full = seconds(lambda: torch.linalg.svd(delta.double(), full_matrices=False))
    with tempfile.TemporaryDirectory() as folder:
        cache = BaseCache(Path(folder))
        cold = seconds(lambda: align(delta, w0, rank=rank or 64))
        align(delta, w0, rank=rank or 64, cache=cache)
        warm = seconds(lambda: align(delta, w0, rank=rank or 64, cache=cache))
    kind = f"rank {rank}" if rank else "full rank"
    return f"{rows:>6} × {cols:<6} {kind:<10} {full:>9.2f} s {cold / full:>9.2f} {warm / full:>9.2f}"


def columns_row(rows: int, cols: int) -> str:
    w0, w = pair(rows, cols, None)

    def analysis() -> None:
        delta, sums = sweep(w0, w)
        evaluate(sums.quantities() | Quantities(s=singular_values(delta).values))

    def sizes_and_ranks() -> None:
        dtype = compute_dtype(w0.dtype, w.dtype)
        delta = w.to(dtype) - w0.to(dtype)
        known = Quantities(
            rows=rows,
            cols=cols,
            s=singular_values(delta).values,
            delta_sq=float(delta.double().square().sum()),
            base_sq=float(w0.double().square().sum()),
        )
        evaluate(known, ("size", "rank", "energy"))

    plain, whole = seconds(sizes_and_ranks), seconds(analysis)
    return f"{rows:>6} × {cols:<6} {plain:>9.3f} s {whole:>9.3f} s {100 * (whole / plain - 1):>+8.1f} %"


def main() -> None:
    torch.set_num_threads(1)
    sizes = [int(a) for a in sys.argv[1:]] or [512, 1024]
    print(f"{'matrix':<26} {'full SVD':>11} {'cold':>9} {'warm':>9}   (in full SVDs)")
    for n in sizes:
        for shape in ((n, n), (n, 11 * n // 4)):
            for rank in (16, None):
                print(alignment_row(*shape, rank), flush=True)
    print(f"\n{'matrix':<15} {'sizes, ranks':>11} {'all columns':>11}   added")
    for n in sizes:
        for shape in ((n, n), (n, 11 * n // 4)):
            print(columns_row(*shape), flush=True)


if __name__ == "__main__":
    main()
