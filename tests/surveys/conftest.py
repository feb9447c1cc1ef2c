"""Small bases and planted adapters of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.many_adapters import Shape, task_factors, write_adapter, write_base

SMALL = Shape(hidden=48, inter=64, layers=2)
TINY = Shape(hidden=16, inter=24, layers=1)
Planted = dict[str, tuple[torch.Tensor, torch.Tensor]]


def dense(factors: Planted) -> dict[str, torch.Tensor]:
    """ΔW by the base's names, float64; `write_adapter` has α/r = 2."""
    return {f"{m}.weight": 2 * (B.double() @ A.double()) for m, (B, A) in factors.items()}


def cosine(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Over the matrices that both have."""
    shared = [n for n in a if n in b]
    x, y = (torch.cat([d[n].flatten() for n in shared]) for d in (a, b))
    return float(x @ y / (x.norm() * y.norm()))


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"), SMALL)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("tiny"), TINY)


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Path]:
    """Writes an adapter of the tiny base: `tiny("name", task, seed, …)`."""

    def write(name: str, task: int = 0, seed: int = 0, **options: object) -> Path:
        config = {k: options.pop(k) for k in list(options) if k not in {"rank", "alike", "size"}}
        factors = task_factors(TINY, task, seed, **{"rank": 2, **options})  # type: ignore[arg-type]
        return write_adapter(tmp_path / "adapters" / name, factors, **config)

    return write
