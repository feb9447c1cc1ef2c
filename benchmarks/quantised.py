"""What reading codes costs: the pass over the entries of a pair in bfloat16 and in FP8, and where the rest goes.

    OMP_NUM_THREADS=1 python -m benchmarks.quantised [--size 4096] [--runs 7]

The pair is one square matrix with a change of 1 %. The pass is all that comes before the spectrum: reading,
subtracting, the sums, and the rounding, which FP8 has from its grid on both sides. CPU time, medians, in turns of one
process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.bench import machine
from deltaw.delta.difference import difference
from deltaw.measurement.sides import open_sides
from deltaw.pairs.selection import ALL
from deltaw.tensors.matrix import matrix
from deltaw.types import Pair, is_handle

BLOCK = 128
NAME = "model.layers.0.mlp.up_proj.weight"
FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}}


def blocks(W: torch.Tensor) -> dict[str, torch.Tensor]:
    """FP8 with a scale for every 128 × 128 entries, as DeepSeek and Qwen store it."""
    n = len(W) // BLOCK
    parts = W.view(n, BLOCK, n, BLOCK)
    scale = parts.abs().amax((1, 3)) / 448
    codes = (parts / scale[:, None, :, None]).reshape(W.shape).to(torch.float8_e4m3fn)
    return {NAME: codes, f"{NAME}_scale_inv": scale}


def pair(folder: Path, config: dict[str, object], sides: list[dict[str, torch.Tensor]]) -> Pair:
    """Two checkpoints of one matrix, opened."""
    paths = folder / "base", folder / "tuned"
    for path, state in zip(paths, sides, strict=True):
        path.mkdir(parents=True)
        save_file(state, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return open_sides(str(paths[0]), str(paths[1])).plan(ALL).pairs[0]


def read(p: Pair) -> None:
    """Both sides alone."""
    assert p.base is not None
    assert is_handle(p.ft)
    matrix(p.base, p.view)
    matrix(p.ft, p.view)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=7)
    given = parser.parse_args()
    g = torch.Generator().manual_seed(0)
    W0 = 0.02 * torch.randn(given.size, given.size, generator=g)
    both = [W0, W0 + 2e-4 * torch.randn(W0.shape, generator=g)]
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as name:
        pairs = {
            "bfloat16": pair(Path(name) / "plain", {}, [{NAME: W.bfloat16()} for W in both]),
            "FP8, blocks": pair(Path(name) / "fp8", FP8, [blocks(W) for W in both]),
        }
        works: dict[str, Callable[[Pair], object]] = {"read": read, "whole pass": lambda p: difference(p, cpu)}
        found: dict[tuple[str, str], list[float]] = {(k, w): [] for k in pairs for w in works}
        for run in range(given.runs + 1):
            for kind, what in found:
                started = time.process_time()
                works[what](pairs[kind])
                if run:  # the first loads what was compiled
                    found[kind, what].append(time.process_time() - started)
    print(f"{machine()}; {given.size}², nanoseconds an entry, medians of {given.runs}\n")
    print("|  | " + " | ".join(works) + " |\n|---" + "|---:" * len(works) + "|")
    for kind in pairs:
        cells = (f"{1e9 * statistics.median(found[kind, what]) / W0.numel():.1f}" for what in works)
        print(f"| {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
