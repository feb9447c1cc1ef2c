"""What many tensors cost: CPU seconds, memory and the report's size by the number of tensors.

    python -m benchmarks.tensors [--counts 20000,50000,100000,200000] [--report 20000]

Each count is a pair of checkpoints of tiny matrices, as an MoE with that many experts has them; `deltaw analyze` is a
process of its own with one job. The last column is CPU time beyond that of the smallest count, for each tensor beyond
it: it stays the same where the work is linear.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

SIDE = 4
SHARD = 50_000  # tensors of a file


class Cost(NamedTuple):
    """Of one run: CPU seconds, seconds, the peak of its memory in GB, the size of its report in MB."""

    cpu: float
    seconds: float
    gigabytes: float
    report: float


def write_pair(folder: Path, count: int) -> None:
    """Two checkpoints of `count` matrices, 128 to a layer."""
    for side in ("base", "ft"):
        g = torch.Generator().manual_seed(len(side))
        (folder / side).mkdir(parents=True)
        numbers = torch.randn(count, SIDE, SIDE, generator=g)
        for shard, at in enumerate(range(0, count, SHARD)):
            names = [
                f"model.layers.{i // 128}.mlp.experts.{i % 128}.w.weight" for i in range(at, min(count, at + SHARD))
            ]
            save_file(
                dict(zip(names, numbers[at : at + SHARD].clone().unbind(), strict=True)),
                folder / side / f"model-{shard + 1:05d}-of-{-(-count // SHARD):05d}.safetensors",
            )


def measure(folder: Path, *, report: bool) -> Cost:
    """Run `deltaw analyze` on a pair."""
    out = folder / "out"
    command = [sys.executable, "-m", "deltaw", "analyze", "base", "ft", "--out", str(out), "--jobs", "1", "--quiet"]
    command += ["--fresh", "--force"] + ([] if report else ["--no-report"])
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        command, cwd=folder, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    size = (out / "report.html").stat().st_size / 1e6 if report else 0.0
    return Cost(cpu, time.perf_counter() - started, after.ru_maxrss / 1e6, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="20000,50000,100000,200000", help="Of tensors, rising.")
    parser.add_argument("--report", type=int, default=20_000, help="The count whose report is written, too.")
    options = parser.parse_args()
    print("| tensors | CPU s | peak GB | µs for each further tensor | report |\n|---:|---:|---:|---:|---|")
    first: tuple[int, float] | None = None
    for count in map(int, options.counts.split(",")):
        with tempfile.TemporaryDirectory(prefix="deltaw-tensors-") as name:
            folder = Path(name)
            write_pair(folder, count)
            cost = measure(folder, report=False)
            said = ""
            if count == options.report:
                whole = measure(folder, report=True)
                said = f"{whole.report:.1f} MB, {whole.cpu - cost.cpu:.0f} s of CPU"
        further = "" if first is None else f"{(cost.cpu - first[1]) / (count - first[0]) * 1e6:.0f}"
        first = first or (count, cost.cpu)
        print(f"| {count:,} | {cost.cpu:.0f} | {cost.gigabytes:.1f} | {further} | {said} |", flush=True)


if __name__ == "__main__":
    main()
