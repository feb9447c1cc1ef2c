"""What a pair of 671B costs, from work that is timed here, and how long it takes on N workers that are slow or fail.

    OMP_NUM_THREADS=1 python -m benchmarks.scale              # unit costs, the pair's costs, simulated runs
    OMP_NUM_THREADS=1 python -m benchmarks.scale --validate   # the simulator against real runs with 1 and 2 cores

The pair has the shapes of DeepSeek-V3 in FP8 with a scale for every 128 × 128 entries. Pairs of its shapes with up to
2048 columns or rows are written and measured; what is larger is extrapolated, and is a small part. Times of CPUs are
CPU seconds of one thread. Those of a GPU are from docs/performance.md ("On a GPU": one H100), and not measured here.
"""

from __future__ import annotations

import argparse
import heapq
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import torch

from benchmarks.bench import machine
from benchmarks.pairs import write_pair
from benchmarks.quantised import BLOCK, FP8, NAME, pair
from deltaw.checkpoints.remote.file import CHUNK
from deltaw.measurement.cost import bytes_needed
from deltaw.measurement.inspection import Inspection
from deltaw.measurement.measure import measure
from deltaw.measurement.options import Options
from deltaw.measurement.unit_costs import interpolated, unit_costs
from deltaw.pairs.selection import ALL
from deltaw.types import Pair

LARGEST_TIMED = 2048
SHARDS = 163  # files of each side
# One H100, docs/performance.md: all singular values of k×k, exactly, seconds; a pass over an entry; reading a 7B pair.
GPU_VALUES = {256: 2.1e-3, 512: 4.6e-3, 1024: 10.3e-3, 2048: 25.7e-3, 4096: 117.6e-3}
GPU_ENTRY = 21.4e-3 / (11008 * 4096)
GPU_READS = 2 * 13.5e9 / 6.3  # bytes a second, to the device


@dataclass(frozen=True)
class Kind:
    """Matrices of one shape: how many, and whether they are in FP8."""

    name: str
    m: int
    n: int
    count: int
    fp8: bool = True

    @property
    def bytes(self) -> int:
        """Of one side of one matrix, with its scales."""
        if not self.fp8:
            return 2 * self.m * self.n
        return self.m * self.n + 4 * ceil(self.m / BLOCK) * ceil(self.n / BLOCK)

    @property
    def requests(self) -> int:
        """Of one side of one matrix: ranges of 16 MiB, and one for its scales."""
        return ceil((1 if self.fp8 else 2) * self.m * self.n / CHUNK) + self.fp8

    @property
    def gpu_seconds(self) -> float:
        """Of the solver and the pass; that over FP8 was not measured on a GPU, and is taken for that of bfloat16."""
        return interpolated(GPU_VALUES, min(self.m, self.n)) + GPU_ENTRY * self.m * self.n


LAYERS, DENSE, EXPERTS = 61, 3, 256
DEEPSEEK_V3 = (
    Kind("experts (gate, up, down)", 2048, 7168, 3 * EXPERTS * (LAYERS - DENSE)),
    Kind("shared experts", 2048, 7168, 3 * (LAYERS - DENSE)),
    Kind("dense MLP", 18432, 7168, 3 * DENSE),
    Kind("q_a_proj", 1536, 7168, LAYERS),
    Kind("q_b_proj", 24576, 1536, LAYERS),
    Kind("kv_a_proj", 576, 7168, LAYERS),
    Kind("kv_b_proj", 32768, 512, LAYERS),
    Kind("o_proj", 7168, 16384, LAYERS),
    Kind("router", 256, 7168, LAYERS - DENSE, fp8=False),
    Kind("embedding, head", 129280, 7168, 2, fp8=False),
)


@dataclass(frozen=True)
class _Stored:
    """A handle of which only the size is asked."""

    shape: tuple[int, int]
    dtype: str
    nbytes: int
    name: str = "weight"
    storage: str = ""

    def read(self, rows: slice | None = None) -> torch.Tensor:
        raise NotImplementedError


def memory_of(kind: Kind) -> int:
    """Bytes that one of them takes while it is measured."""
    one = _Stored((kind.m, kind.n), "fp8_block" if kind.fp8 else "bfloat16", kind.bytes)
    return bytes_needed([Pair("weight", one, one)])


# Unit costs
def coded(W: torch.Tensor) -> dict[str, torch.Tensor]:
    """FP8 with a scale for every 128 × 128 entries, the last blocks smaller."""
    m, n = W.shape
    padded = torch.zeros(ceil(m / BLOCK) * BLOCK, ceil(n / BLOCK) * BLOCK)
    padded[:m, :n] = W
    parts = padded.view(padded.shape[0] // BLOCK, BLOCK, padded.shape[1] // BLOCK, BLOCK)
    scale = parts.abs().amax((1, 3)) / 448
    codes = (parts / scale[:, None, :, None]).reshape(padded.shape)[:m, :n].to(torch.float8_e4m3fn)
    return {NAME: codes.contiguous(), f"{NAME}_scale_inv": scale}


def timed(kind: Kind, mode: str, runs: int) -> float:
    """CPU seconds of one of them, whole: reading from a warm cache, the sums, the spectrum, the row."""
    g = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(kind.m, kind.n, generator=g)
    sides = [base, base + 1e-3 * torch.randn(kind.m, kind.n, generator=g)]
    made = [coded(W) if kind.fp8 else {NAME: W.bfloat16()} for W in sides]
    options, found = Options(mode=mode), []
    with tempfile.TemporaryDirectory() as folder:
        one = pair(Path(folder), FP8 if kind.fp8 else {}, made)
        del base, sides, made
        for _ in range(runs):
            started = time.thread_time()
            (row,) = measure([one], options, torch.device("cpu"))
            found.append(time.thread_time() - started)
            assert row.row is not None, row.skipped
    return min(found)


def costs_of(kinds: Sequence[Kind], mode: str, runs: int) -> dict[str, tuple[float, bool]]:
    """CPU seconds of one matrix of each kind, and whether it was timed or extrapolated from smaller ones."""
    found: dict[str, tuple[float, bool]] = {}
    known: dict[tuple[int, int, bool], float] = {}
    for kind in kinds:
        shape = (kind.m, kind.n, kind.fp8)
        if min(kind.m, kind.n) <= LARGEST_TIMED and shape not in known:
            known[shape] = timed(kind, mode, runs)
        if shape in known:
            found[kind.name] = known[shape], True
            continue
        stored = _Stored((kind.m, kind.n), "bfloat16", 0)
        one = Pair("weight", stored, stored)
        found[kind.name] = unit_costs([one], mode, "cpu").seconds(one), False
    return found


def print_costs(kinds: Sequence[Kind], mode: str, runs: int) -> dict[str, float]:
    """The table of one mode; returns the CPU seconds of each kind."""
    found = costs_of(kinds, mode, runs)
    print(f"\n### {mode}: CPU seconds of one matrix, one thread\n")
    print("| matrices | shape | how many | seconds | core-hours | GPU-hours |\n|---|---|---:|---:|---:|---:|")
    cpu = gpu = guessed = 0.0
    for kind in kinds:
        seconds, was_timed = found[kind.name]
        hours, on_gpu = seconds * kind.count / 3600, kind.gpu_seconds * kind.count / 3600
        cpu, gpu, guessed = cpu + hours, gpu + on_gpu, guessed + (0 if was_timed else hours)
        shown = f"{on_gpu:.2f}" if mode == "exact" else "–"
        shape = f"{kind.m}×{kind.n} {'FP8' if kind.fp8 else 'bf16'}"
        mark = "" if was_timed else " (extrapolated)"
        print(f"| {kind.name} | {shape} | {kind.count:,} | {seconds:.3g}{mark} | {hours:.2f} | {shown} |")
    total = f"{gpu:.2f}" if mode == "exact" else "–"
    print(
        f"| **all** | | {sum(k.count for k in kinds):,} | | **{cpu:.1f}** ({guessed:.1f} extrapolated) | **{total}** |"
    )
    return {name: seconds for name, (seconds, _) in found.items()}


def print_size(kinds: Sequence[Kind]) -> int:
    """Bytes, requests and memory; returns the bytes of both sides."""
    numbers = sum(k.m * k.n * k.count for k in kinds)
    both = 2 * sum(k.bytes * k.count for k in kinds)
    asked = 2 * (sum(k.requests * k.count for k in kinds) + 2 * SHARDS)
    largest = max(kinds, key=memory_of)
    common = max((k for k in kinds if k.fp8 and k.count > LAYERS), key=memory_of)
    print(f"{numbers / 1e9:.0f} billion numbers in {sum(k.count for k in kinds):,} matrices (norms and biases apart).")
    print(f"To read: {both / 1e12:.2f} TB of both sides, in {asked:,} ranges.")
    print(
        f"Memory of one matrix in work: {memory_of(common) / 1e9:.1f} GB ({common.name}), "
        f"{memory_of(largest) / 1e9:.1f} GB ({largest.name}); the interpreter with torch apart."
    )
    return both


# The simulator
@dataclass(frozen=True)
class Unit:
    """What is done at once: seconds of an ordinary worker, and bytes to read."""

    seconds: float
    bytes: float = 0.0


@dataclass(frozen=True)
class Fleet:
    """Workers, and what happens to them.

    Attributes:
        workers: How many; each measures one unit at a time.
        start: Seconds until a worker begins: imports, and the headers of both sides.
        bandwidth: Bytes a second of each worker.
        shared: Bytes a second of all together.
        slow_share, slow_by: How many are slow, and by which factor.
        failures_per_hour: Of each worker that is at work.
        back_after: Seconds until one that failed is there again (or another in its place).
        requeue: Whether what a worker lost goes to another: a cluster's task, not a part.
        per_task: Seconds of the driver for each task of a cluster, in which it does nothing else.
    """

    workers: int
    start: float = 0.0
    bandwidth: float = float("inf")
    shared: float = float("inf")
    slow_share: float = 0.0
    slow_by: float = 1.0
    failures_per_hour: float = 0.0
    back_after: float = 120.0
    requeue: bool = False
    per_task: float = 0.0


def speeds(fleet: Fleet, chance: random.Random) -> list[float]:
    """By which factor each worker is slower."""
    return [fleet.slow_by if chance.random() < fleet.slow_share else 1.0 for _ in range(fleet.workers)]


def attempt(unit: Unit, slow: float, fleet: Fleet, chance: random.Random) -> tuple[float, bool]:
    """How long a worker is at a unit, and whether it lives; reading overlaps computing."""
    rate = min(fleet.bandwidth, fleet.shared / fleet.workers)
    takes = slow * max(unit.seconds, unit.bytes / rate)
    fails = chance.expovariate(fleet.failures_per_hour / 3600) if fleet.failures_per_hour else float("inf")
    return (fails, False) if fails < takes else (takes, True)


def parts(units: Sequence[Unit], count: int) -> list[list[Unit]]:
    """The division of `--part`: the largest first, each to the part that has least."""
    loads = [(0.0, i) for i in range(count)]
    out: list[list[Unit]] = [[] for _ in range(count)]
    for unit in sorted(units, key=lambda u: -u.seconds):
        load, i = heapq.heappop(loads)
        out[i].append(unit)
        heapq.heappush(loads, (load + unit.seconds, i))
    return out


def simulate(batches: Sequence[Sequence[Unit]], fleet: Fleet, seed: int = 0) -> float:
    """Seconds until all is done, where each worker takes the next batch when it is free.

    A batch is a part of a job array, or a task of a cluster. What a worker had finished of it when it failed is kept;
    the rest of a part waits until the worker is back, the rest of a task is done by whoever is free.
    """
    chance = random.Random(seed)
    slow = speeds(fleet, chance)
    waiting = deque(list(batch) for batch in batches)
    # What happens next: when, to which worker, and what it had to give back there.
    events: list[tuple[float, int, list[Unit]]] = [(fleet.start, i, []) for i in range(fleet.workers)]
    idle: list[int] = []
    driver = finished = 0.0
    while events:
        now, i, lost = heapq.heappop(events)
        if lost:
            waiting.appendleft(lost)
            if idle:
                heapq.heappush(events, (now, idle.pop(), []))
            heapq.heappush(events, (now + fleet.back_after + fleet.start, i, []))
            continue
        if not waiting:
            idle.append(i)
            continue
        batch = waiting.popleft()
        driver = max(driver, now) + fleet.per_task
        now = driver if fleet.per_task else now
        while batch:
            took, lives = attempt(batch[0], slow[i], fleet, chance)
            now += took
            if lives:
                batch.pop(0)
            elif fleet.requeue:
                break
            else:
                now += fleet.back_after + fleet.start
        if not batch:
            finished = max(finished, now)
        heapq.heappush(events, (now, i, batch))
    return finished


def tasks(units: Sequence[Unit], least: float) -> list[list[Unit]]:
    """Tasks of a cluster, the longest units first: some units together where one is less than `least` seconds."""
    out: list[list[Unit]] = []
    for unit in sorted(units, key=lambda u: -u.seconds):
        if out and sum(u.seconds for u in out[-1]) < least:
            out[-1].append(unit)
        else:
            out.append([unit])
    return out


FLEETS = (
    ("all alike, none fails", {}),
    ("a tenth at half the speed", {"slow_share": 0.1, "slow_by": 2.0}),
    ("each fails once in 10 hours", {"failures_per_hour": 0.1}),
    ("both", {"slow_share": 0.1, "slow_by": 2.0, "failures_per_hour": 0.1}),
)


def print_runs(kinds: Sequence[Kind], seconds: dict[str, float], start: float) -> None:
    """Simulated runs: hours, medians of 5 seeds."""
    units = [Unit(seconds[k.name], 2 * k.bytes) for k in kinds for _ in range(k.count)]
    least = sum(u.seconds for u in units) / 3600
    print(f"\nCores, 100 MB/s each, {start:.0f} s to start; hours (of {least:.1f} core-hours), medians of 5 seeds:\n")
    print(
        "| workers | what happens | N parts | 8 N parts | tasks of a cluster | at best |\n"
        "|---:|---|---:|---:|---:|---:|"
    )
    for workers in (64, 512):
        for name, about in FLEETS:
            fleet = Fleet(workers, start=start, bandwidth=1e8, **about)
            plans: list[Callable[[], list[list[Unit]]]] = [
                lambda: parts(units, workers),  # noqa: B023  called at once
                lambda: parts(units, 8 * workers),  # noqa: B023
                lambda: tasks(units, 1.0),
            ]
            cells = []
            for number, plan in enumerate(plans):
                made, on = plan(), fleet if number < 2 else replace(fleet, requeue=True, per_task=1e-3)
                cells.append(statistics.median(simulate(made, on, seed) for seed in range(5)) / 3600)
            print(f"| {workers} | {name} | " + " | ".join(f"{c:.2f}" for c in cells) + f" | {least / workers:.2f} |")


# Against real runs
def validate(given: Sequence[str], layers: int, runs: int) -> None:
    """Parts on 1 and 2 cores, each a process of its own that is held to one core: predicted and measured."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = tuple(map(Path, given)) if given else write_pair(folder, layers=layers)
        pairs = Inspection.of(*map(str, sides), ALL).plan.pairs
        first = next(p for p in pairs if p.route == "dense" and p.shape[0] == p.shape[1])
        one = ("--include", f"^{re.escape(first.name)}$")
        alone = statistics.median(cpu_seconds(folder, sides, "1/1", *one) for _ in range(runs))
        start = alone - unit_costs(pairs, "exact", "cpu").seconds(first)
        for mode in ("exact", "fast"):
            costs = unit_costs(pairs, mode, "cpu")
            units = [Unit(costs.seconds(p)) for p in pairs]
            for cores in (1, 2):
                predicted = simulate(parts(units, cores), Fleet(cores, start=start))
                measured = statistics.median(
                    max(cpu_seconds(folder, sides, f"{i}/{cores}", "--mode", mode) for i in range(1, cores + 1))
                    for _ in range(runs)
                )
                print(
                    f"| {mode} | {cores} | {predicted:.2f} | {measured:.2f} | {measured / predicted:.2f} |", flush=True
                )


def validate_cluster(layers: int) -> None:
    """Tasks of Ray on 1 and 2 cores of this machine, in wall time: the driver and the workers share the cores."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = write_pair(folder, layers=layers)
        pairs = Inspection.of(*map(str, sides), ALL).plan.pairs
        costs = unit_costs(pairs, "exact", "cpu")
        units = [Unit(costs.seconds(p)) for p in pairs]
        one = ("--include", r"layers\.0\.self_attn\.q_proj")
        for count in (1, 2):
            held = ("taskset", "-c", ",".join(map(str, cores[:count])))
            start = wall_seconds(folder, sides, held, *one) - next(
                costs.seconds(p) for p in pairs if "q_proj" in p.name
            )
            predicted = simulate(tasks(units, 1.0), Fleet(count, start=start, requeue=True, per_task=1e-3))
            measured = wall_seconds(folder, sides, held)
            row = f"{predicted:.2f} (of which {start:.2f} to start) | {measured:.2f} | {measured / predicted:.2f}"
            print(f"| exact, Ray, wall | {count} | {row} |", flush=True)


def wall_seconds(folder: Path, sides: Sequence[Path], held: Sequence[str], *more: str) -> float:
    """Wall seconds of a process that measures on a Ray cluster of its own, held to some cores."""
    command = [*held, sys.executable, "-m", "deltaw", "analyze", *map(str, sides), "--out", str(folder / "ray")]
    command += ["--executor", "ray", "--no-report", "--format", "csv", "--device", "cpu", "-q", "--force", "--fresh"]
    started = time.perf_counter()
    subprocess.run([*command, *more], check=True)
    return time.perf_counter() - started


def cpu_seconds(folder: Path, sides: Sequence[Path], part: str, *more: str) -> float:
    """CPU seconds of a process that measures a part with one thread."""
    out = folder / "out"
    command = [sys.executable, "-m", "deltaw", "analyze", *map(str, sides), "--out", str(out), "--fresh", "--no-report"]
    command += ["--jobs", "1", "--device", "cpu", "--format", "csv", "-q", "--force", "--part", part, *more]
    limited = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
    process = subprocess.Popen(command, env=limited)
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, command
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validate", action="store_true", help="The simulator against real runs here.")
    parser.add_argument("--pair", nargs=2, help="Of --validate: paths of a base and a fine-tune of one's own.")
    parser.add_argument("--layers", type=int, default=8, help="Of the pair of --validate: 8 are 119 M numbers.")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--start", type=float, default=30.0, help="Seconds until a worker begins.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    if given.validate:
        print("\n| mode | cores | predicted | measured | ratio |\n|---|---:|---:|---:|---:|")
        validate(given.pair or (), given.layers, given.runs)
        if not given.pair:
            validate_cluster(given.layers)
        return
    print_size(DEEPSEEK_V3)
    for mode in ("exact", "fast"):
        seconds = print_costs(DEEPSEEK_V3, mode, given.runs)
        print_runs(DEEPSEEK_V3, seconds, given.start)


if __name__ == "__main__":
    main()
