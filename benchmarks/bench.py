"""Speed and memory, as ratios measured in one run: `make bench`, or `python -m benchmarks.bench`.

    --quick          one run of each, and the smaller sizes
    --runs N         runs of each; default 5
    --peers PYTHON   an interpreter where modeldelta==0.4.4 and weightwatcher==0.7.7 are installed: side by side
    --gpu            the GPU rows too
    --only WORD ...  only the sections whose title has one of these words

Every measurement is a process of its own (`benchmarks/work.py`); those of one row of the table take turns, so that what
else the machine does falls on all of them, and a ratio is the median of the reference over the median of the method.
On a machine that is shared, read the ratio of the CPU times, with OMP_NUM_THREADS=1: threads that wait for each other
count as busy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.pairs import demo_pair, write_pair

WORK = Path(__file__).with_name("work.py")
MATRICES = ((1024, 1024), (2816, 1024), (1024, 2816), (2048, 2048), (4096, 4096), (4096, 11008), (8192, 8192))
QUICK_MATRICES = MATRICES[:4]
LARGEST = MATRICES[-1]  # one run of it takes minutes, and is the only one
EXACT, READING = "deltaw, exact", "reading alone"


class Case(NamedTuple):
    """One line of a section: what runs, with what arguments, and by which interpreter."""

    label: str
    task: tuple[str, ...]
    python: str = sys.executable


class Section(NamedTuple):
    """Cases that are compared with each other; the first is the reference."""

    title: str
    cases: Sequence[Case]
    once: bool = False  # where a run takes minutes
    ratios: bool = True  # to the first case


class Measurement(NamedTuple):
    """Medians over the runs; None where a run failed."""

    seconds: float | None
    cpu: float | None
    peak_mb: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peers", metavar="PYTHON")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    runs = 1 if options.quick else options.runs
    print(f"{machine()}; medians of {runs}\n")
    with tempfile.TemporaryDirectory(prefix="deltaw-bench-") as folder:
        for section in sections(Path(folder), options):
            if not options.only or any(word in section.title for word in options.only):
                print(table(section, measure(section.cases, 1 if section.once else runs)), flush=True)


def sections(folder: Path, options: argparse.Namespace) -> Iterator[Section]:
    yield Section("The real pair (all-MiniLM-L6-v2 and a fine-tune of it)", pair_cases(*demo_pair(), options.peers))
    for title, rank in (("full update", None), ("merged LoRA r = 16, bf16", 16)):
        base, tuned = write_pair(folder / title.split()[0], rank=rank)
        yield Section(f"Llama-shaped pair, 119 M parameters, {title}", pair_cases(base, tuned, options.peers))
    yield Section("Memory: 2 and 32 layers of the same pair", list(memory_cases(folder)), ratios=False)
    for m, n in QUICK_MATRICES if options.quick else MATRICES:
        for rank in ("full", "16"):
            what = "full update" if rank == "full" else "merged LoRA r = 16"
            once = (m, n) == LARGEST
            title = f"One matrix {m}×{n}, {what}" + (", one run" if once else "")
            yield Section(title, matrix_cases(m, n, rank), once)
    for m, n in ((1024, 1024), (2816, 1024)):
        stages = {"entries": "the pass over the entries", "gram": "Gram matrix", "eigenvalues": "its eigenvalues"}
        cases = [Case(label, ("stage", stage, str(m), str(n))) for stage, label in stages.items()]
        yield Section(f"Stages of a full update {m}×{n}, exactly, one thread", cases, ratios=False)
    layers = "4" if options.quick else "32"
    adapters = [Case(f"r = {r}", ("adapter", r, layers)) for r in ("16", "64")]
    yield Section(f"Adapters of a 7B Llama, {layers} layers", adapters, ratios=False)
    if options.gpu:
        yield from gpu_sections()


def pair_cases(base: Path, tuned: Path, peers: str | None) -> list[Case]:
    pair = (str(base), str(tuned))
    cases = [
        Case("plain loop", ("loop", *pair)),
        Case(EXACT, ("deltaw", *pair, "exact")),
        Case("deltaw, fast", ("deltaw", *pair, "fast")),
        Case(READING, ("read", *pair)),
    ]
    if peers:
        cases += [Case("modeldelta 0.4.4", ("modeldelta", *pair), peers)]
        cases += [Case("WeightWatcher 0.7.7", ("weightwatcher", *pair), peers)]
    return cases


def memory_cases(folder: Path) -> Iterator[Case]:
    for layers in (2, 32):
        base, tuned = write_pair(folder / f"layers-{layers}", layers=layers)
        for mode in ("exact", "fast"):
            yield Case(f"{layers} layers, {mode}", ("deltaw", str(base), str(tuned), mode))


def matrix_cases(m: int, n: int, rank: str, device: str = "cpu") -> list[Case]:
    shape = (str(m), str(n), rank, device)
    names = {
        "svdvals": "svdvals, float32",
        "full": "all values, exactly",
        "exact": "deltaw, exact",
        "fast": "deltaw, fast",
    }
    return [Case(label, ("matrix", method, *shape)) for method, label in names.items()]


def gpu_sections() -> Iterator[Section]:
    for m, n in ((1024, 1024), (4096, 4096), (4096, 11008)):
        for rank in ("full", "16"):
            yield Section(f"GPU: one matrix {m}×{n}, rank {rank}", matrix_cases(m, n, rank, "cuda"))
    names = {"svdvals": "svdvals, float32", "exact": "deltaw, exact", "fast": "deltaw, fast"}
    cases = [Case(label, ("pair_on_gpu", mode, "32")) for mode, label in names.items()]
    yield Section("GPU: every matrix of a 7B-shaped full update", cases)


def measure(cases: Sequence[Case], runs: int) -> list[Measurement]:
    """All cases in turn, `runs` times over."""
    found: list[list[dict[str, float]]] = [[] for _ in cases]
    for _ in range(runs):
        for case, results in zip(cases, found, strict=True):
            done = subprocess.run(
                [case.python, str(WORK), *case.task], capture_output=True, text=True, check=False, cwd=WORK.parents[1]
            )
            if done.returncode == 0:
                results.append(json.loads(done.stdout.strip().splitlines()[-1]))
            else:
                print(f"{case.label}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
    return [
        Measurement(
            *(statistics.median(r[key] for r in results) if results else None for key in ("seconds", "cpu", "peak_mb"))
        )
        for results in found
    ]


def table(section: Section, measured: Sequence[Measurement]) -> str:
    """A section as Markdown."""
    memory = section.cases[0].task[0] not in {"matrix", "stage"}  # a matrix is made in the same process
    columns = ["", "seconds", "speed-up", "CPU seconds", "less by", "peak memory"]
    lines = [row(columns), "|---|" + "---:|" * 5]
    first = measured[0]
    for case, (seconds, cpu, peak) in zip(section.cases, measured, strict=True):
        if seconds is None or cpu is None or peak is None:
            lines.append(row([case.label, "failed", "", "", "", ""]))
            continue
        ratios = [
            f"{a / max(b, 1e-9):.2f}×" if a and section.ratios else ""
            for a, b in ((first.seconds, seconds), (first.cpu, cpu))
        ]
        size = f"{peak:.0f} MB" if memory else ""
        lines.append(row([case.label, f"{seconds:.3g}", ratios[0], f"{cpu:.3g}", ratios[1], size]))
    return f"### {section.title}\n\n" + "\n".join(lines) + f"\n{reading_share(section, measured)}"


def row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def reading_share(section: Section, measured: Sequence[Measurement]) -> str:
    """What part of the exact analysis is reading, where both were measured."""
    seconds = {case.label: m.seconds for case, m in zip(section.cases, measured, strict=True)}
    read, all_of_it = seconds.get(READING), seconds.get(EXACT)
    return f"\nReading is {read / all_of_it:.0%} of the exact analysis.\n" if read and all_of_it else ""


def machine() -> str:
    """The machine and the libraries that decide the numbers."""
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cores} cores of {names[0] if names else platform.processor()}{gpu}; torch {torch.__version__}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
