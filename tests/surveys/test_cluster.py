"""The adapters of a survey on a Ray cluster: the tables of a run of threads; each worker opens them by itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import deltaw
from deltaw.adapters import open_base
from deltaw.errors import ClusterError, MissingExtraError, OptionError
from deltaw.pairs.selection import Selection
from deltaw.surveys.distributed import AdapterTask, files_of, look_on, read_adapters
from deltaw.surveys.inputs import Member

pytestmark = [
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),  # Ray's own
]


@pytest.fixture
def adapters(tiny: Callable[..., Path]) -> Path:
    """Of two tasks, one with an infinite entry, one that is cut off."""
    for i in range(7):
        tiny(f"a{i}", i % 2, i)
    at = tiny("infinite") / "adapter_model.safetensors"
    tensors = load_file(at)
    next(iter(tensors.values()))[0, 0] = torch.inf
    save_file(tensors, at)
    at = tiny("cut") / "adapter_model.safetensors"
    at.write_bytes(at.read_bytes()[:100])
    return at.parents[1]


def test_a_driver_that_was_stopped_has_the_tables_of_threads_to_the_bit(
    adapters: Path, tiny_base: Path, cluster: Any, tmp_path: Path
):
    def stop(stage: str, done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        here = deltaw.survey(tiny_base, adapters)
        where: dict[str, Any] = {"executor": "ray", "ray_address": cluster.address, "out": tmp_path / "out"}
        with pytest.raises(KeyboardInterrupt):
            deltaw.survey(tiny_base, adapters, progress=stop, **where)
        read: list[int] = []
        there = deltaw.survey(
            tiny_base, adapters, progress=lambda stage, d, t: read.append(d) if stage == "reading" else None, **where
        )
    finally:
        torch.set_num_threads(before)
    for table in ("adapters", "pairs", "pairs_by_kind", "neighbours", "spectra"):
        pd.testing.assert_frame_equal(getattr(here, table)(), getattr(there, table)(), check_exact=True)
    assert [name for name, _ in there.failed] == ["cut"]
    # Of the four at least two were kept: nothing is of the one that is cut off, and the one with a note is read again.
    assert read == list(range(read[0], 10))
    assert read[0] > 2


def test_a_node_that_does_not_see_the_base(tiny_base: Path, small_base: Path, tiny: Callable[..., Path]):
    class Elsewhere:
        """A cluster whose nodes hold something else where the base lies."""

        cpus = most_cpus = 1

        def __init__(self, there: str) -> None:
            self.there = there

        def on_every_node(self, function: Callable[[str], Any], item: str) -> list[tuple[str, Any]]:
            return [("10.0.0.1", function(item)), ("10.0.0.2", function(self.there))]

    members = [Member("one", str(tiny("one")))]
    for there, why in (("nowhere", "nowhere: no such"), (str(small_base), "holds other numbers there")):
        nodes: Any = Elsewhere(there)
        with pytest.raises(ClusterError, match=rf"node 10\.0\.0\.2 cannot use the inputs: .*{why}.*every node shares"):
            next(look_on(nodes, open_base(str(tiny_base)), Selection(), members, [0], None))


def test_a_node_that_does_not_see_an_adapter(tiny_base: Path, tiny: Callable[..., Path], tmp_path: Path):
    one = str(tiny("one"))
    files = files_of(one)
    task = AdapterTask(str(tiny_base), Selection(), (0,), (one,), (files,), 1)
    assert read_adapters(task)[0].looked.keys
    for lost, why in (
        (task._replace(sources=(str(tmp_path / "gone"),)), "gone cannot be found there"),
        (task._replace(files=(files[:1],)), "one has other files there"),
    ):
        with pytest.raises(ClusterError, match=rf"cannot use the adapters: .*{why}; put them on a file system"):
            read_adapters(lost)


def test_what_cannot_run_there(adapters: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(OptionError, match="expected one of threads, ray"):
        deltaw.survey(tiny_base, adapters, executor="dask")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"deltaw\[ray\]"):
        deltaw.survey(tiny_base, adapters, executor="ray")
