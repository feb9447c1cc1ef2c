"""Is one revision of the code slower than another? Opening, analysing, and the start, in turns.

    python -m benchmarks.slower BEFORE [AFTER] [--runs N] [--only WORD ...]

Both are git revisions; AFTER defaults to HEAD. Every run is a process of its own, of the one and of the other in turn;
what is shown are medians of the runs' wall and CPU times, and the ratio of the CPU times. An analysis is the first one
of its process, after the imports, as a user's is. Inspecting is quick: a run is the median of several in one process.
The start is `import deltaw` with what `analyze` and `inspect` load, torch aside, from bytecode that is there.
On a machine that is shared, read the ratio, with OMP_NUM_THREADS=1: threads that wait for each other count as busy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from benchmarks.bench import machine
from benchmarks.pairs import demo_pair, write_pair
from benchmarks.revisions import IMPORT, package_of

TINY = 4000  # tensors of the pair that only takes to be opened and paired
REPEATS = 15  # of what takes milliseconds

# What a process runs: `what` is start, analyze or inspect. Prints wall and CPU seconds.
MEASURE = """
import gc
import json
import statistics
import time
from pathlib import Path

import psutil, threadpoolctl  # what both load when they first analyse
import torch

def timed(work):
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu

def start():
    import deltaw
    deltaw.analyze, deltaw.inspect

gc.collect()  # torch's objects, when it is not the revision's turn
started = timed(start)
import deltaw
assert deltaw.__file__.startswith({package!r}), deltaw.__file__
if {what!r} == "start":
    found = started
elif {what!r} == "analyze":
    found = timed(lambda: deltaw.analyze({base!r}, {ft!r}, device="cpu"))
else:
    runs = [timed(lambda: deltaw.inspect({base!r}, {ft!r})) for _ in range({repeats})]
    found = [statistics.median(times) for times in zip(*runs)]
print(json.dumps(found))
"""


class Case(NamedTuple):
    """One line of the table."""

    label: str
    what: str
    base: Path
    ft: Path


def tiny_pair(folder: Path) -> tuple[Path, Path]:
    """A pair of many tensors of a few numbers."""
    paths = folder / "base", folder / "tuned"
    for seed, path in enumerate(paths):
        g = torch.Generator().manual_seed(seed)
        path.mkdir(parents=True)
        names = (f"model.layers.{i // 40}.block{i % 40}.self_attn.q_proj.weight" for i in range(TINY))
        save_file({name: torch.randn(4, 4, generator=g) for name in names}, path / "model.safetensors")
    return paths


def cases(folder: Path) -> list[Case]:
    """What is measured, its pairs written."""
    demo, tiny = demo_pair(), tiny_pair(folder / "tiny")
    full, merged = write_pair(folder / "full"), write_pair(folder / "merged", rank=16)
    return [
        Case("start: import", "start", *demo),
        Case("inspect, the real pair", "inspect", *demo),
        Case(f"inspect, {TINY:,} tiny tensors", "inspect", *tiny),
        Case("analyze, the real pair", "analyze", *demo),
        Case("analyze, 119 M parameters, full update", "analyze", *full),
        Case("analyze, 119 M parameters, merged LoRA r = 16, bf16", "analyze", *merged),
    ]


def run(case: Case, package: Path, env: Mapping[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of one process."""
    given = {"package": str(package), "what": case.what, "base": str(case.base), "ft": str(case.ft)}
    code = IMPORT.format(package=str(package)) + MEASURE.format(**given, repeats=REPEATS)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, env=env, stdout=subprocess.PIPE)
    wall, cpu = json.loads(done.stdout.splitlines()[-1])
    return wall, cpu


def main() -> None:
    """Measure both revisions in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after", nargs="?", default="HEAD")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="lines whose label has one of these")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        packages = [stack.enter_context(package_of(r, folder)) for r in (given.before, given.after)]
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        env |= {"PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
        chosen = [c for c in cases(folder) if not given.only or any(word in c.label for word in given.only)]
        for package in packages:  # leaves the bytecode, and the files in the system's cache
            run(Case("", "analyze", *demo_pair()), package, env)
        print(f"{machine()}; {given.before} and {given.after}, medians of {given.runs}\n")
        print(
            "|  | before, wall | after, wall | before, CPU | after, CPU | ratio of CPU |\n" + "|---" + 5 * "|---:" + "|"
        )
        for case in chosen:
            found: list[list[tuple[float, float]]] = [[], []]
            for turn in range(given.runs):
                for i in (0, 1) if turn % 2 == 0 else (1, 0):
                    found[i].append(run(case, packages[i], env))
            (old_wall, old_cpu), (new_wall, new_cpu) = (
                [1e3 * statistics.median(times) for times in zip(*side, strict=True)] for side in found
            )
            cells = (f"{x:,.1f} ms" if x < 1e3 else f"{x / 1e3:.2f} s" for x in (old_wall, new_wall, old_cpu, new_cpu))
            print(f"| {case.label} | {' | '.join(cells)} | {new_cpu / old_cpu:.2f} |", flush=True)


if __name__ == "__main__":
    main()
