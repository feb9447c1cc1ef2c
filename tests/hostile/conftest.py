"""Small inputs that are wrong, and the command line run on them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save

from deltaw.cli import main
from tests.fuzz.cases import limited, put

AT = "base_model.model.x"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path / "cache"))
    return tmp_path


def drawn(*shape: int, seed: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def both(write: Callable[[str, int], None]) -> None:
    """The same file twice, `a` and `b`, with other numbers."""
    for number, name in enumerate("ab"):
        write(name, number)


def tensors(name: str, **state: torch.Tensor) -> None:
    put(Path(name), save(state))


def adapter(
    config: dict[str, object],
    factors: dict[str, torch.Tensor] | None = None,
    base: dict[str, torch.Tensor] | None = None,
) -> None:
    """A base and an adapter of rank 2 of its one matrix, or of what is given."""
    put(Path("base/model.safetensors"), save(base or {"x.weight": drawn(8, 6)}))
    factors = factors or {f"{AT}.lora_A.weight": drawn(2, 6), f"{AT}.lora_B.weight": drawn(8, 2)}
    put(Path("ad/adapter_model.safetensors"), save(factors))
    about = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    put(Path("ad/adapter_config.json"), json.dumps(about).encode())


def run(command: str) -> tuple[int, str, str]:
    """The exit code, what was printed, and the last line of stderr; no defect and no traceback, in bounded time."""
    with limited():
        done = CliRunner().invoke(main, command.split())
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    assert "Traceback" not in done.output
    assert "defect of deltaw" not in done.output
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert all(len(line) < 3000 for line in lines)
    return done.exit_code, done.stdout, lines[-1] if lines else ""
