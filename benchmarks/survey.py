"""Time and memory of a survey by the number of adapters: `python -m benchmarks.survey FOLDER --counts 250,500,1000`.

FOLDER is filled with a base and as many synthetic adapters as are asked for (5 MB each: r = 8, hidden 1024, 16 layers,
7 projections, 20 of each task; `--tiny`: hidden 16, one layer), and kept. Each survey runs in a process of its own; one
line of JSON says what each stage took, in seconds on the wall and of processors.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import click

from benchmarks.many_adapters import Shape, task_factors, write_adapter, write_base

OF_A_TASK = 20
TINY = Shape(hidden=16, inter=24, layers=1)


def make(folder: Path, shape: Shape, number: int) -> None:
    """Write one adapter, if it is not there."""
    at = folder / "adapters" / f"a{number:05d}"
    if not (at / "adapter_config.json").exists():
        factors = task_factors(shape, number // OF_A_TASK, number, size=1.5 ** (number % 10 - 5))
        write_adapter(at, {module: (B.bfloat16(), A.bfloat16()) for module, (B, A) in factors.items()})


def measure(folder: Path, count: int) -> dict[str, object]:
    """Survey the first adapters of a folder, in this process."""
    import deltaw

    ends: dict[str, tuple[float, float]] = {}  # of each stage, on the wall and of processors

    def progress(stage: str, done: int, total: int) -> None:
        ends[stage] = time.perf_counter(), time.process_time()

    progress("start", 0, 0)
    adapters = sorted((folder / "adapters").iterdir())[:count]
    survey = deltaw.survey(folder / "base", adapters, out=folder / f"out-{count}", resume=False, progress=progress)
    progress("tables", 0, 0)
    report = survey.report(folder / f"out-{count}" / "report.html")
    progress("report", 0, 0)
    return {
        "adapters": count,
        "seconds": round(ends["report"][0] - ends["start"][0], 1),
        "processor": round(time.process_time(), 1),
        "stages": {
            name: [round(now - before, 1) for before, now in zip(last, end, strict=True)]
            for (name, end), last in zip(list(ends.items())[1:], ends.values(), strict=False)
        },
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "report_mb": round(report.stat().st_size / 1e6, 1),
    }


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--counts", default="250,500,1000,2000", show_default=True)
@click.option("--tiny", is_flag=True, help="Of a toy model.")
@click.option("--one", type=int, hidden=True)
def main(folder: Path, counts: str, tiny: bool, one: int | None) -> None:
    """Make what is missing, then survey each number of adapters in a process of its own."""
    if one is not None:
        click.echo(json.dumps(measure(folder, one)))
        return
    shape = TINY if tiny else Shape()
    numbers = [int(n) for n in counts.split(",")]
    if not (folder / "base").exists():
        write_base(folder / "base", shape)
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(make, folder, shape), range(max(numbers)), chunksize=16))
    for number in numbers:
        subprocess.run([sys.executable, "-m", "benchmarks.survey", str(folder), "--one", str(number)], check=True)


if __name__ == "__main__":
    main()
