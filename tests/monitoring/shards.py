"""One process of a training in shards, for `test_sharded.py`: rank, processes, where to meet, where to write."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def make_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.Tanh(), torch.nn.Linear(24, 16))


def train(model: torch.nn.Module, out: Path, base: Any = None) -> list[tuple[int, dict[str, float]]]:
    """Two steps of SGD on the same batches in every process."""
    import deltaw

    logged: list[tuple[int, dict[str, float]]] = []
    monitor = deltaw.Monitor(
        model, every=1, log=lambda numbers, step: logged.append((step, numbers)), out=out, device="cpu", base=base
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for i in (1, 2):
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(i))
        optimizer.zero_grad()
        (model(x) - x.roll(1, 1)).square().mean().backward()
        optimizer.step()
        monitor.step(i)
    return logged


def main(rank: int, world: int, meet: str, out: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    model = make_model()
    for layer in model:  # type: ignore[attr-defined]
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    logged = train(model, out / f"rank{rank}")
    (out / f"logged{rank}.json").write_text(json.dumps(logged))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
