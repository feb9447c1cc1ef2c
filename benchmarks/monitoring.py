"""What a monitor adds to a training, per model size, amortised over `every` steps.

    OMP_NUM_THREADS=1 python benchmarks/monitoring.py [--every 100] [WIDTH ...]

A transformer (four blocks, sequences of 256, batches of 4) is trained on random tokens in float32; the table has the
median seconds of a step and of a record (`exact`, `fast`), and the record's share of the time of `every` steps with it.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import deltaw

WIDTHS = (64, 128, 256, 512)
BLOCKS, HEADS, VOCABULARY, LENGTH, BATCH = 4, 4, 1024, 256, 4


def make_model(width: int) -> torch.nn.Module:
    layer = torch.nn.TransformerEncoderLayer(width, HEADS, 4 * width, batch_first=True, dropout=0.0)
    encoder = torch.nn.TransformerEncoder(layer, BLOCKS, enable_nested_tensor=False)
    return torch.nn.Sequential(torch.nn.Embedding(VOCABULARY, width), encoder, torch.nn.Linear(width, VOCABULARY))


def seconds_of_a_step(model: torch.nn.Module, steps: int = 5) -> float:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found = []
    for _ in range(steps):
        tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH))
        started = time.perf_counter()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def seconds_of_a_record(model: torch.nn.Module, mode: str, records: int = 3) -> float:
    monitor = deltaw.Monitor(model, every=1, mode=mode, device="cpu")
    for i in range(1, records + 1):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1e-3 * torch.randn_like(p))
        monitor.step(i)
    return statistics.median(r.seconds for r in monitor.records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("widths", nargs="*", type=int, default=WIDTHS)
    parser.add_argument("--every", type=int, default=100)
    given = parser.parse_args()
    print("| width | parameters | step | record, exact | share | record, fast | share |\n|---|---|---|---|---|---|---|")
    for width in given.widths:
        torch.manual_seed(0)
        model = make_model(width)
        step = seconds_of_a_step(model)
        cells = []
        for mode in ("exact", "fast"):
            record = seconds_of_a_record(model, mode)
            cells += [f"{record:.2f} s", f"{record / (record + given.every * step):.1%}"]
        count = sum(p.numel() for p in model.parameters())
        print(f"| {width} | {count / 1e6:.1f} M | {step:.3f} s | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
