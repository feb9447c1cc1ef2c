"""The long form: `python -m tests.fuzz --inputs N`, as `make fuzz` runs it. Prints what came of each kind of file."""

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.fuzz.cases import KINDS, run, working_folder

COSTLY = {
    "journal": 50,
    "analysis.json": 5,
    "layers.csv": 5,
    "spectra": 5,
    "runs.json": 50,
}  # an input of these counts as so many
ANALYZE_EACH = 50
SHARE = 2000  # inputs of one task


def task(number: int, start: int, stop: int) -> tuple[int, Counter[str]]:
    """Damage and use one kind of input for a range of seeds."""
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory(prefix="deltaw-fuzz-") as folder:
        kind = KINDS[number]
        return number, Counter(
            run(kind, working_folder(Path(folder), kind), iter(range(start, stop)), analyze_each=ANALYZE_EACH)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="In all.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--after", type=int, default=0, help="Go on after so many, where an earlier run ended.")
    options = parser.parse_args()
    started = time.monotonic()
    weights = [1 / COSTLY.get(kind.name, 1) for kind in KINDS]
    wanted = [max(1, round(options.inputs * w / sum(weights))) for w in weights]
    tasks = [(i, at, min(n, at + SHARE)) for i, n in enumerate(wanted) for at in range(0, n, SHARE)]
    done = 0
    while tasks and done + tasks[0][2] - tasks[0][1] <= options.after:
        done += tasks[0][2] - tasks[0][1]
        tasks = tasks[1:]
    found = [Counter[str]() for _ in KINDS]
    with ProcessPoolExecutor(options.jobs) as pool:
        for number, counts in pool.map(task, *zip(*tasks, strict=True)):
            found[number].update(counts)
            done += sum(counts[what] for what in ("used", "refused"))
            print(f"{done:,} inputs after {(time.monotonic() - started) / 60:.0f} min", file=sys.stderr, flush=True)
    print("| file | inputs | refused in one line | used | of them measured |\n|---|---:|---:|---:|---:|")
    for kind, counts in zip(KINDS, found, strict=True):
        cells = (counts["used"] + counts["refused"], counts["refused"], counts["used"], counts["analysed"])
        print(f"| {kind.name} | " + " | ".join(f"{c:,}" for c in cells) + " |")
    total = sum(c["used"] + c["refused"] for c in found)
    print(f"\n{total:,} inputs in {(time.monotonic() - started) / 60:.0f} min: nothing else came out.")


if __name__ == "__main__":
    main()
