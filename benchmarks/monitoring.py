"""What a monitor adds to a training, per model size, amortised over `every` steps; and whether memory stays flat.

    OMP_NUM_THREADS=1 python benchmarks/monitoring.py [--every 100] [WIDTH ...]
    OMP_NUM_THREADS=1 python benchmarks/monitoring.py --memory [--every 10]

A transformer (four blocks, sequences of 256, batches of 4) is trained on random tokens in float32. The table has the
median seconds of a step and of a record, and the record's share of the time of `every` steps with it: of all weights
(`exact`, `fast`), and of a LoRA (r = 16, peft) on the MLPs, whose step has its own time. `--memory` trains the smallest
one for 1,000 steps, and prints what the process holds after each hundred.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from typing import Any

import psutil
import torch

import deltaw

WIDTHS = (64, 128, 256, 512)
BLOCKS, HEADS, VOCABULARY, LENGTH, BATCH = 4, 4, 1024, 256, 4


def make_model(width: int) -> torch.nn.Module:
    layer = torch.nn.TransformerEncoderLayer(width, HEADS, 4 * width, batch_first=True, dropout=0.0)
    encoder = torch.nn.TransformerEncoder(layer, BLOCKS, enable_nested_tensor=False)
    return torch.nn.Sequential(torch.nn.Embedding(VOCABULARY, width), encoder, torch.nn.Linear(width, VOCABULARY))


def make_adapter(width: int) -> Any:
    import peft

    return peft.get_peft_model(make_model(width), peft.LoraConfig(r=16, target_modules=["linear1", "linear2"]))


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)


def train(model: Any, optimizer: torch.optim.Optimizer) -> None:
    tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH))
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    optimizer.step()


def seconds_of_a_step(model: torch.nn.Module, steps: int = 5) -> float:
    optimizer = optimizer_of(model)
    found = []
    for _ in range(steps):
        started = time.perf_counter()
        train(model, optimizer)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def seconds_of_a_record(model: torch.nn.Module, mode: str, records: int = 3) -> float:
    monitor = deltaw.Monitor(model, every=1, mode=mode, device="cpu")
    for i in range(1, records + 1):
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(1e-3 * torch.randn_like(p))
        monitor.step(i)
    return statistics.median(r.seconds for r in monitor.records)


def table(widths: list[int], every: int) -> None:
    kinds = ("record, exact", "record, fast", "LoRA: step", "record")
    print(f"| width | parameters | step | {kinds[0]} | share | {kinds[1]} | share | {kinds[2]} | {kinds[3]} | share |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for width in widths:
        torch.manual_seed(0)
        model, adapter = make_model(width), make_adapter(width)
        step, small = seconds_of_a_step(model), seconds_of_a_step(adapter)
        cells = [f"{step:.3f} s"]
        for mode in ("exact", "fast"):
            record = seconds_of_a_record(model, mode)
            cells += [f"{record:.2f} s", f"{record / (record + every * step):.1%}"]
        record = seconds_of_a_record(adapter, "exact")
        cells += [f"{small:.3f} s", f"{record:.2f} s", f"{record / (record + every * small):.1%}"]
        count = sum(p.numel() for p in model.parameters())
        print(f"| {width} | {count / 1e6:.1f} M | {' | '.join(cells)} |", flush=True)


def memory(every: int, steps: int = 1000) -> None:
    """MB that the process holds, with and without a monitor."""
    torch.manual_seed(0)
    for watched in (False, True):
        model = make_model(WIDTHS[0])
        optimizer = optimizer_of(model)
        monitor = deltaw.Monitor(model, every=every, device="cpu") if watched else None
        held = []
        for i in range(1, steps + 1):
            train(model, optimizer)
            if monitor is not None:
                monitor.step(i)
            if i % 100 == 0:
                gc.collect()
                held.append(psutil.Process().memory_info().rss / 1e6)
        print("with a monitor" if watched else "without one", *(f"{mb:.0f}" for mb in held), "MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("widths", nargs="*", type=int, default=WIDTHS)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--memory", action="store_true")
    given = parser.parse_args()
    if given.memory:
        memory(given.every)
    else:
        table(given.widths, given.every)


if __name__ == "__main__":
    main()
