"""`deltaw extract` beside the plain loop over `svd`, on one Llama-shaped bf16 pair: `python -m benchmarks.extraction`.

The loop is what other extractors do: subtract, SVD in float32, keep r. It is run twice: subtracting after the upcast,
and in the stored dtype. Rounds are interleaved, and processor time is compared, as ratios. Errors are ‖ΔW − BA‖F/‖ΔW‖F
against the float64 ΔW, the largest of all matrices.

    --layers N       of the pair; default 1
    --ranks N,N      default 16,64
    --rounds N       default 2
    --lora N         a merged LoRA of this rank; default: a full fine-tune
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

import deltaw
from benchmarks.pairs import write_pair


def loop(base: Path, ft: Path, rank: int, *, stored: bool) -> float:
    """The plain loop; returns its largest error."""
    W0, W = load_file(base / "model.safetensors"), load_file(ft / "model.safetensors")
    worst = 0.0
    for name, w in W.items():
        if w.ndim < 2 or torch.equal(w, W0[name]):
            continue
        delta = (w - W0[name]).float() if stored else w.float() - W0[name].float()
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        exact = w.double() - W0[name].double()
        made = (u[:, :rank] * s[:rank]).double() @ vh[:rank].double()
        worst = max(worst, float(torch.linalg.vector_norm(exact - made) / torch.linalg.vector_norm(exact)))
    return worst


def extracted(base: Path, ft: Path, rank: int, out: Path) -> float:
    """deltaw; returns its largest error."""
    found = deltaw.extract(base, ft, out, rank=rank, force=True)
    return max(row.relative_error for row in found.layers)


def main() -> None:
    """Print one line per rank and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--ranks", default="16,64")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--lora", type=int)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        pair = write_pair(at, layers=asked.layers, rank=asked.lora)
        for rank in map(int, asked.ranks.split(",")):
            ways: dict[str, Callable[[], float]] = {
                "deltaw extract": lambda r=rank: extracted(*pair, r, at / "out"),
                "loop, float32 ΔW": lambda r=rank: loop(*pair, r, stored=False),
                "loop, bfloat16 ΔW": lambda r=rank: loop(*pair, r, stored=True),
            }
            spent, errors = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
            for _ in range(asked.rounds):
                for name, way in ways.items():
                    start = time.process_time()
                    errors[name] = way()
                    spent[name] += time.process_time() - start
            for name in ways:
                ratio = spent[name] / spent["deltaw extract"]
                print(f"rank {rank:3}  {name:18} {ratio:6.2f} times the processor time, error {errors[name]:.6f}")


if __name__ == "__main__":
    main()
