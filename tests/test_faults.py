"""What can go wrong in the middle of a run: each ends in the right rows or one named failure, and nothing is lost."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import deltaw
from deltaw.checkpoints import open_checkpoint
from deltaw.errors import ResultsError
from deltaw.files import replacing
from deltaw.spectra import exact
from tests.conftest import changed, save_single

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills and limits processes by POSIX signals")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    g = torch.Generator().manual_seed(0)
    state = {f"layers.{i}.w.weight": torch.randn(160, 160, generator=g) for i in range(60)}
    return save_single(state, folder / "b"), save_single(changed(state), folder / "f")


@pytest.fixture(scope="module")
def expected(pair: tuple[Path, Path]) -> pd.DataFrame:
    return numbers(deltaw.analyze(*pair, jobs=1))


def numbers(analysis: deltaw.Analysis) -> pd.DataFrame:
    return analysis.to_pandas().drop(columns="seconds")


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process, where torch is loaded already; returns its process id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return child


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def single_thread() -> Iterator[None]:
    """OpenMP's threads do not survive a fork, so a child that forks from here must not wait for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("single_thread")
def test_sigkill_at_random_moments(pair: tuple[Path, Path], expected: pd.DataFrame, tmp_path: Path):
    out, rng = tmp_path / "o", random.Random(0)
    killed = 0

    def run() -> None:
        deltaw.analyze(*pair, out=out, jobs=1)
        os._exit(0)

    for _ in range(20):
        child = in_child(run)
        time.sleep(rng.uniform(0.02, 0.25))
        os.kill(child, signal.SIGKILL)
        killed += wait(child) == -signal.SIGKILL
        if (out / "analysis.json").exists():  # written last
            pd.testing.assert_frame_equal(numbers(deltaw.load(out)), expected, check_exact=True)
    assert killed >= 3, "the runs finished before they were killed: nothing was tested"
    assert wait(in_child(run)) == 0
    pd.testing.assert_frame_equal(numbers(deltaw.load(out)), expected, check_exact=True)
    assert [p.name for p in out.iterdir() if "journal" in p.name] == []


@pytest.mark.usefixtures("single_thread")
def test_a_full_disk_keeps_what_is_done(pair: tuple[Path, Path], expected: pd.DataFrame, tmp_path: Path):
    out = tmp_path / "o"

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            deltaw.analyze(*pair, out=out, jobs=1)
        except ResultsError as e:
            os._exit(7 if "free some space" in str(e) else 8)

    assert wait(in_child(run)) == 7
    kept = (out / ".deltaw-journal.jsonl").read_bytes().count(b"\n") - 1
    assert 0 < kept < 60
    resumed = deltaw.analyze(*pair, out=out, jobs=1)
    pd.testing.assert_frame_equal(numbers(resumed), expected, check_exact=True)


def test_a_shard_that_is_truncated_meanwhile(pair: tuple[Path, Path], tmp_path: Path):
    ft = save_single({n: h.read() for n, h in open_checkpoint(pair[1]).tensors.items()}, tmp_path / "f")
    file = ft / "model.safetensors"

    half = file.stat().st_size // 2

    def cut(_: deltaw.Progress) -> None:
        os.truncate(file, half)

    result = deltaw.analyze(pair[0], ft, jobs=1, progress=cut)
    assert len(result.rows) + len(result.failed) == 60
    assert len(result.failed) >= 25
    assert all("truncated" in s.reason for s in result.failed)
    assert len(result.rows) >= 25


def with_handle(path: Path, name: str, **methods: Callable[..., torch.Tensor]):
    """A checkpoint in which the reading of one tensor behaves badly."""
    opened = open_checkpoint(path)
    handle = opened.tensors[name]
    bad = type("Bad", (type(handle),), methods)
    fields = {f: getattr(handle, f) for f in handle.__dataclass_fields__}
    return replace(opened, tensors={**opened.tensors, name: bad(**fields)})


def test_a_reader_that_stalls_holds_up_nobody_else(pair: tuple[Path, Path], expected: pd.DataFrame):
    name = "layers.7.w.weight"
    finished = []

    def slow(self, rows=None):
        time.sleep(1.0)
        return super(type(self), self).read(rows)

    result = deltaw.analyze(
        pair[0], with_handle(pair[1], name, read=slow), jobs=2, progress=lambda p: finished.append(p.name)
    )
    assert finished[-1] == name
    frame = numbers(result)
    assert (frame["name"] == expected["name"]).all()
    np.testing.assert_allclose(frame["effective_rank"], expected["effective_rank"])


@pytest.mark.parametrize("error", [MemoryError("no room"), OSError(5, "Input/output error"), RuntimeError("boom")])
def test_a_worker_that_fails_names_its_tensor(pair: tuple[Path, Path], error: Exception):
    def broken(self, rows=None):
        raise error

    result = deltaw.analyze(pair[0], with_handle(pair[1], "layers.7.w.weight", read=broken), jobs=2)
    assert [s.name for s in result.failed] == ["layers.7.w.weight"]
    assert str(error) in result.failed[0].reason
    assert len(result.rows) == 59


def test_a_defect_costs_its_tensor_and_says_that_it_is_one(pair: tuple[Path, Path]):
    def broken(self, rows=None):
        raise ZeroDivisionError("by zero")

    result = deltaw.analyze(pair[0], with_handle(pair[1], "layers.7.w.weight", read=broken), jobs=2)
    assert [s.name for s in result.failed] == ["layers.7.w.weight"]
    assert "unexpected ZeroDivisionError: by zero (a defect of deltaw" in result.failed[0].reason
    assert len(result.rows) == 59


def test_a_matrix_that_does_not_converge(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    def diverges(*_):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setitem(exact.DRIVERS, "cpu", dict.fromkeys(exact.DRIVERS["cpu"], diverges))
    result = deltaw.analyze(*pair, include=[r"layers\.[12]\."])
    assert [s.name for s in result.failed] == ["layers.1.w.weight", "layers.2.w.weight"]
    assert all("did not converge" in s.reason for s in result.failed)


def test_a_small_memory_budget_still_ends(pair: tuple[Path, Path], expected: pd.DataFrame):
    """Every matrix is larger than the budget: they run one at a time."""
    frame = numbers(deltaw.analyze(*pair, memory=1000, jobs=4))
    np.testing.assert_allclose(frame["effective_rank"], expected["effective_rank"])


def test_what_a_killed_run_left_of_a_file_goes_with_the_next_one(tmp_path: Path):
    """A command without a lock may not touch what a live process writes, nor what is no temporary file of this one."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f".report.html.{ended.pid}.1.tmp"
    others = [
        tmp_path / f".report.html.{os.getppid()}.1.tmp",
        tmp_path / f".other.html.{ended.pid}.1.tmp",
        tmp_path / ".report.html.bak.tmp",
    ]
    for path in (left, *others):
        path.write_text("half")
    with replacing(tmp_path / "report.html") as temporary:
        temporary.write_text("whole")
    assert not left.exists()
    assert all(path.exists() for path in others)
    assert (tmp_path / "report.html").read_text() == "whole"
