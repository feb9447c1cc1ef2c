"""What activations cost: collecting, against the forward pass of a layer; analysing on data, against plain.

    python benchmarks/on_data.py [WIDTH]   (of an analysed matrix; collected are twice as wide ones)

CPU time of one thread, so that a shared machine disturbs it little; each number is of one run, of the better of two
for an analysis.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import deltaw

TOKENS, BATCHES = 2048, 2


class Layer(nn.Module):
    """The seven matrices of a decoder layer, wired as they share inputs there."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = width * 43 // 16  # 11008 of 4096
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Without attention's softmax, which costs no matrix product of this size."""
        h = x + self.o(torch.tanh(self.q(x) + self.k(x)) * self.v(x))
        return h + self.down(torch.relu(self.gate(h)) * self.up(h))


def seconds(work: Callable[[], object]) -> float:
    """CPU time that something takes."""
    started = time.process_time()
    work()
    return time.process_time() - started


def collecting(width: int, folder: Path) -> None:
    """The forward pass alone, with one matrix, with all."""
    layer = Layer(width).eval()
    batches = [torch.randn(1, TOKENS, width) for _ in range(BATCHES)]
    with torch.no_grad():
        plain = seconds(lambda: [layer(x) for x in batches])
    for what, include in (("one matrix", "^q"), ("all seven", ())):
        file = folder / "a.safetensors"
        took = seconds(partial(deltaw.collect_activations, layer, batches, file, include=include))
        print(f"{width}: forward {plain:.1f} s, with the inputs of {what} {took:.1f} s (+{took / plain - 1:.0%})")


def analysing(width: int, folder: Path) -> None:
    """A square and an oblong matrix, exactly and fast, plain and on data."""
    for rows in (width, width * 43 // 16):
        W0 = torch.randn(rows, width)
        base, ft = {"weight": W0}, {"weight": W0 + 1e-3 * torch.randn_like(W0)}
        x = [torch.randn(TOKENS, width) for _ in range(4)]
        found = deltaw.collect_activations(nn.Linear(width, rows, bias=False), x, folder / "b.safetensors")
        for mode in ("exact", "fast"):
            plain, on_data = (
                min(seconds(partial(deltaw.analyze, base, ft, activations=a, jobs=1, mode=mode)) for _ in range(2))
                for a in ((), found)
            )
            print(f"{rows}×{width} {mode}: plain {plain:.2f} s, on data {on_data:.2f} s ({on_data / plain:.1f} times)")


if __name__ == "__main__":
    torch.set_num_threads(1)
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
    with tempfile.TemporaryDirectory() as name:
        collecting(2 * size, Path(name))
        analysing(size, Path(name))
