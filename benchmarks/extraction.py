"""`deltaw extract` beside the plain loop over `svd`, on one Llama-shaped bf16 pair: `python -m benchmarks.extraction`.

The loop is what other extractors do: subtract, SVD in float32, keep r, write. It is run twice: subtracting after the
upcast, and in the stored dtype. Rounds are interleaved; medians of wall and processor time, and their ratios. Errors
are ‖ΔW − BA‖F/‖ΔW‖F of the factors against the float64 ΔW, the largest of all; finding the loop's is not timed.

    --layers N       of the pair; default 1
    --ranks N,N      default 16,64
    --rounds N       default 3
    --lora N         a merged LoRA of this rank; default: a full fine-tune
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import deltaw
from benchmarks.pairs import write_pair

Factors = dict[str, tuple[Tensor, Tensor]]


def loop(base: Path, ft: Path, rank: int, out: Path, *, stored: bool) -> Factors:
    """The plain loop; writes its factors, as deltaw does, and tells nothing of their error."""
    W0, W = load_file(base / "model.safetensors"), load_file(ft / "model.safetensors")
    found = {}
    for name, w in W.items():
        if w.ndim < 2 or torch.equal(w, W0[name]):
            continue
        delta = (w - W0[name]).float() if stored else w.float() - W0[name].float()
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        root = s[:rank].sqrt()
        found[name] = (u[:, :rank] * root, root[:, None] * vh[:rank])
    out.mkdir(exist_ok=True)
    save_file(
        {f"{n}.{ab}": f.contiguous() for n, both in found.items() for ab, f in zip("BA", both, strict=True)},
        out / "loop.safetensors",
    )
    return found


def error(base: Path, ft: Path, found: Factors) -> float:
    """The largest ‖ΔW − BA‖F/‖ΔW‖F, in float64."""
    W0, W = load_file(base / "model.safetensors"), load_file(ft / "model.safetensors")
    worst = 0.0
    for name, (B, A) in found.items():
        exact = W[name].double() - W0[name].double()
        rest = torch.linalg.vector_norm(exact - B.double() @ A.double())
        worst = max(worst, float(rest / torch.linalg.vector_norm(exact)))
    return worst


def extracted(base: Path, ft: Path, rank: int, out: Path) -> Factors:
    """deltaw, with its certificate; the factors by the names of their tensors."""
    deltaw.extract(base, ft, out, rank=rank, force=True)
    written = load_file(out / "adapter_model.safetensors")
    found: Factors = {}
    for key, A in written.items():
        name = key.removeprefix("base_model.model.")
        if key.endswith("lora_A.weight"):
            found[name.replace("lora_A.weight", "weight")] = (written[key.replace("lora_A", "lora_B")], A)
        elif key.endswith("lora_embedding_A"):
            B = written[key.replace("lora_embedding_A", "lora_embedding_B")]
            found[name.replace("lora_embedding_A", "weight")] = (A.T, B.T)  # of the table, (vocabulary, r) and (r, n)
    return found


def main() -> None:
    """Print one line per rank and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--ranks", default="16,64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lora", type=int)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        pair = write_pair(at, layers=asked.layers, rank=asked.lora)
        for rank in map(int, asked.ranks.split(",")):
            ways: dict[str, Callable[[], Factors]] = {
                "deltaw extract": lambda r=rank: extracted(*pair, r, at / "out"),
                "loop, float32 ΔW": lambda r=rank: loop(*pair, r, at / "plain", stored=False),
                "loop, bfloat16 ΔW": lambda r=rank: loop(*pair, r, at / "plain", stored=True),
            }
            wall: dict[str, list[float]] = {name: [] for name in ways}
            spent: dict[str, list[float]] = {name: [] for name in ways}
            found = {}
            for _ in range(asked.rounds):
                for name, way in ways.items():
                    began, start = time.perf_counter(), time.process_time()
                    found[name] = way()
                    wall[name].append(time.perf_counter() - began)
                    spent[name].append(time.process_time() - start)
            ours = [statistics.median(times["deltaw extract"]) for times in (wall, spent)]
            for name in ways:
                theirs = [statistics.median(times[name]) for times in (wall, spent)]
                by_wall, by_cpu = (t / o for t, o in zip(theirs, ours, strict=True))
                print(
                    f"rank {rank:3}  {name:18} {theirs[0]:7.2f} s, {by_wall:5.2f} times; {by_cpu:5.2f} times the "
                    f"processor time; error {error(*pair, found[name]):.8f}"
                )


if __name__ == "__main__":
    main()
