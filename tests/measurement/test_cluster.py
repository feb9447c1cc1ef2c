"""The loop on a Ray cluster: the rows of a run of threads, whatever is lost on the way."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import save_file

import deltaw
from deltaw.errors import ClusterError, MissingExtraError, OptionError
from deltaw.measurement.cost import bytes_needed
from deltaw.measurement.distributed import Inputs, OnCluster, contents, seen
from deltaw.measurement.loop import Progress
from deltaw.measurement.options import Options
from deltaw.measurement.sides import open_sides

pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),  # Ray's own
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Enough matrices of three sizes that a cluster is still at it when the first is finished."""
    folder = tmp_path_factory.mktemp("pair")
    g = torch.Generator().manual_seed(0)
    base = {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(256, 192, generator=g) for i in range(40)}
    base |= {f"model.layers.{i}.self_attn.q_proj.weight": torch.randn(24, 24, generator=g) for i in range(9)}
    base |= {f"model.layers.{i}.norm.weight": torch.randn(24, generator=g) for i in range(3)}
    paths = folder / "base.safetensors", folder / "ft.safetensors"
    save_file(base, paths[0])
    save_file({n: w + 0.01 * torch.randn(w.shape, generator=g) for n, w in base.items()}, paths[1])
    return paths


def rows(result: deltaw.Analysis) -> pd.DataFrame:
    return result.to_pandas().drop(columns="seconds")


def threads_of_one_core(pair: tuple[Path, Path], **options: Any) -> pd.DataFrame:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        return rows(deltaw.analyze(*pair, jobs=2, **options))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "options", [{}, {"alignment": True, "include": "layers.1", "part": "2/3"}], ids=["plain", "part"]
)
def test_the_rows_of_threads_to_the_bit(pair, cluster, tmp_path, options):
    before = signal.getsignal(signal.SIGTERM)
    result = deltaw.analyze(*pair, executor="ray", ray_address=cluster.address, out=tmp_path / "out", **options)
    pd.testing.assert_frame_equal(rows(result), threads_of_one_core(pair, **options), check_exact=True)
    assert result.device == "cpu"
    assert not (tmp_path / "out" / ".deltaw-journal.jsonl").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_workers_and_a_node_are_lost(pair, cluster, tmp_path):
    """A worker by SIGKILL at the first result, a node at the second: every row is there, and is the same."""
    lost = []

    def progress(now: Progress) -> None:
        if len(lost) < 1:
            workers = [p for p in psutil.process_iter(["cmdline"]) if "ray::measure_units" in str(p.info["cmdline"])]
            for worker in workers[:1]:
                os.kill(worker.pid, signal.SIGKILL)
            lost.append(len(workers))
        elif len(lost) < 2:
            cluster.remove_node(cluster.node, allow_graceful=False)
            lost.append("node")

    out = tmp_path / "out"
    found = deltaw.analyze(*pair, executor="ray", ray_address=cluster.address, out=out, progress=progress)
    assert lost == [lost[0], "node"]
    assert lost[0]
    pd.testing.assert_frame_equal(rows(found), threads_of_one_core(pair), check_exact=True)
    assert not found.skipped
    cluster.node = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)


def test_the_driver_is_stopped_and_goes_on(pair, cluster, tmp_path):
    def stop(now: Progress) -> None:
        if now.done > 5:
            raise KeyboardInterrupt

    where = {"executor": "ray", "ray_address": cluster.address, "out": tmp_path / "out"}
    with pytest.raises(KeyboardInterrupt):
        deltaw.analyze(*pair, progress=stop, **where)
    kept = []
    found = deltaw.analyze(*pair, progress=lambda now: kept.append(now.done), **where)
    assert kept[0] > 5
    pd.testing.assert_frame_equal(rows(found), threads_of_one_core(pair), check_exact=True)


def test_a_tensor_that_fails_is_named(pair, cluster, tmp_path):
    broken = tmp_path / "ft.safetensors"
    save_file({"a": torch.full((4, 4), torch.nan), "b": torch.ones(4, 4)}, broken)
    save_file({"a": torch.ones(4, 4), "b": torch.zeros(4, 4)}, tmp_path / "base.safetensors")
    found = deltaw.analyze(tmp_path / "base.safetensors", broken, executor="ray", ray_address=cluster.address)
    assert [s.name for s in found.failed] == ["a"]
    assert [r["name"] for r in found.rows] == ["b"]


def test_a_node_that_does_not_see_the_inputs(pair):
    class Elsewhere:
        cpus = most_cpus = 1

        def on_every_node(self, function: Any, item: Inputs) -> list[tuple[str, Any]]:
            return [("10.0.0.1", function(item)), ("10.0.0.2", function(replace(item, ft="nowhere")))]

    sides = open_sides(*pair)
    inputs = Inputs.of(sides, Options(), "cpu")
    assert seen(inputs) == contents(sides) == [s.hashed().hash for s in sides.sources]
    pairs = sides.plan(Options().selection).pairs
    there = OnCluster(Elsewhere(), inputs, contents(sides), None)  # type: ignore[arg-type]
    with pytest.raises(ClusterError, match=r"node 10\.0\.0\.2 cannot use the inputs: nowhere"):
        next(there.measure(pairs, [pairs[:1]], bytes_needed, total=1, most=1, per_gpu=1))


def test_what_cannot_run_there(pair, monkeypatch):
    state = {"a": torch.ones(2, 2)}
    with pytest.raises(OptionError, match="save the model first"):
        deltaw.analyze(state, state, executor="ray")
    with pytest.raises(OptionError, match="expected auto, cpu or cuda"):
        deltaw.analyze(*pair, executor="ray", device="mps")
    with pytest.raises(OptionError, match="expected one of threads, ray"):
        deltaw.analyze(*pair, executor="dask")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"deltaw\[ray\]"):
        deltaw.analyze(*pair, executor="ray")
