"""One process of a training in shards, for `test_sharded.py`: how, rank, processes, where to meet, where to write."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

RATE = 0.5


def make_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.Tanh(), torch.nn.Linear(24, 16))


def make_adapter() -> Any:
    """The same model with a LoRA on both layers, its B no longer 0."""
    import peft

    return peft.get_peft_model(make_model(), peft.LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False))


def train(
    model: Any, out: Path, update: Callable[[torch.Tensor], object] | None = None
) -> list[tuple[int, dict[str, float]]]:
    """Two steps of SGD on the same batches in every process; `update` does a step where DeepSpeed has to."""
    import deltaw

    logged: list[tuple[int, dict[str, float]]] = []
    monitor = deltaw.Monitor(
        model, every=1, log=lambda numbers, step: logged.append((step, numbers)), out=out, device="cpu"
    )
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)

    def plain(loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    for i in (1, 2):
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(i))
        (update or plain)((model(x) - x.roll(1, 1)).square().mean())
        monitor.step(i)
    return logged


def fsdp2(model: Any, world: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (world,))
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def zero3(model: Any) -> Any:
    """DeepSpeed's engine; no parameter is small enough to stay whole, those that are frozen neither."""
    import deepspeed

    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)  # takes the group that is there
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        config={
            "train_micro_batch_size_per_gpu": 32,
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
            "zero_force_ds_cpu_optimizer": False,
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": 0.0,  # by default it clips, which the other trainings do not
            "optimizer": {"type": "SGD", "params": {"lr": RATE}},
        },
    )
    assert all(p.numel() == 0 for p in model.parameters()), "each process holds a part"
    return engine


def main(how: str, rank: int, world: int, meet: str, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=world)
    model = make_adapter() if how.endswith("peft") else make_model()
    if how.startswith("ZeRO-3"):
        engine = zero3(model)

        def update(loss: torch.Tensor) -> None:
            engine.backward(loss)
            engine.step()

        logged = train(engine, out / f"rank{rank}", update)
    else:
        fsdp2(model, world)
        logged = train(model, out / f"rank{rank}")
    (out / f"logged{rank}.json").write_text(json.dumps(logged))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], Path(sys.argv[5]))
