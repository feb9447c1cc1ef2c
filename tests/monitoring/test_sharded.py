"""Two real processes that hold half of each matrix see what one process sees."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch

import deltaw
from deltaw.errors import OptionError
from deltaw.monitoring import live

from .shards import make_adapter, make_model, train

WORKER = Path(__file__).with_name("shards.py")


def needs(how: str) -> None:
    if how.endswith("peft"):
        pytest.importorskip("peft")
    if how.startswith("ZeRO-3"):
        if importlib.util.find_spec("deepspeed") is None:
            pytest.skip("DeepSpeed is not in `dev`: it compiles C++ when it is first used")
        if shutil.which("c++") is None:
            pytest.skip("DeepSpeed compiles its exchange between processes, and there is no c++")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize("how", ["FSDP2", "FSDP2, peft", "ZeRO-3", "ZeRO-3, peft"])
def test_two_processes_equal_one(tmp_path: Path, how: str) -> None:
    needs(how)
    place = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "DS_ACCELERATOR": "cpu"}  # what DeepSpeed asks for
    env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | place
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), how, str(rank), "2", str(tmp_path / "meet"), str(tmp_path)],
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in (0, 1)
    ]
    ends = [worker.communicate(timeout=240)[1] for worker in workers]
    assert [w.returncode for w in workers] == [0, 0], "\n".join(ends)
    alone = train(make_adapter() if how.endswith("peft") else make_model(), tmp_path / "alone")
    first, second = (json.loads((tmp_path / f"logged{rank}.json").read_text()) for rank in (0, 1))
    assert second == [], "process 1 serves, and logs nothing"
    assert not (tmp_path / "rank1").exists()
    assert [step for step, _ in first] == [1, 2]
    for (_, found), (_, expected) in zip(first, alone, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)  # gradients are averaged over two processes: float32 sums
    tables = [
        deltaw.load(tmp_path / side / "step-00000002").to_pandas()[["name", "route", "rows", "fro_norm", "rank_90"]]
        for side in ("rank0", "alone")
    ]
    pd.testing.assert_frame_equal(*tables, rtol=1e-4)
    assert set(tables[0]["route"]) == ({"factored"} if how.endswith("peft") else {"dense", "vector"})


@pytest.fixture
def deepspeed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What ZeRO-3 does to a parameter, in one process: its data is elsewhere, and there inside `GatheredParameters`."""
    gathered: list[int] = []

    @contextmanager
    def gathered_parameters(parameters: list[torch.nn.Parameter]) -> Iterator[None]:
        (p,) = parameters
        gathered.append(p.numel())
        p.data = p.kept  # type: ignore[attr-defined]
        yield
        p.data = torch.empty(0)

    module = types.ModuleType("deepspeed")
    module.zero = types.SimpleNamespace(GatheredParameters=gathered_parameters)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepspeed", module)
    return gathered


def partition(model: torch.nn.Module) -> None:
    for i, p in enumerate(model.parameters()):
        p.kept, p.ds_id, p.ds_shape = p.data, i, p.shape  # type: ignore[attr-defined]
        p.data = torch.empty(0)


def test_partitioned_parameters_are_gathered(deepspeed: list[int]) -> None:
    model = make_model()
    expected = {n: t.clone() for n, t in model.state_dict().items()}
    partition(model)
    assert live.in_shards(live.state(model))
    assert all(torch.equal(t, expected[n]) for n, t in live.copied(live.state(model)).items())
    assert deepspeed == [0, 0, 0, 0]
    handles = live.checkpoint(live.state(model), deltaw.documents.Document()).tensors
    assert [h.shape for h in handles.values()] == [(24, 16), (24,), (16, 24), (16,)]
    assert handles["0.weight"].nbytes == 24 * 16 * 4
    assert torch.equal(handles["0.weight"].read(slice(0, 2)), expected["0.weight"][:2])
    assert all(p.numel() == 0 for p in model.parameters()), "left as they were"


def test_a_model_of_fsdp1_is_refused() -> None:
    class FullyShardedDataParallel(torch.nn.Module):
        pass

    with pytest.raises(OptionError, match="use FSDP2"):
        deltaw.Monitor(FullyShardedDataParallel())
