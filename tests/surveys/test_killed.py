"""A survey that ends before its end, by a kill or a full disk, goes on with what it had."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import deltaw
from deltaw.errors import ResultsError
from deltaw.surveys import run
from deltaw.surveys.parts import SurveyFolder

KILLED = """
import os, signal, sys
import deltaw
def progress(stage, done, total):
    if done == 5:
        os.kill(os.getpid(), signal.SIGKILL)
deltaw.survey(*sys.argv[1:3], out=sys.argv[3], jobs=1, progress=progress)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process by a POSIX signal")
def test_killed_and_run_again(tiny: Callable[..., Path], tiny_base: Path, tmp_path: Path):
    for i in range(8):
        tiny(f"a{i}", i % 2, i)
    adapters, out = tmp_path / "adapters", tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, tiny_base, adapters, out], check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert not list(out.glob("*.csv"))
    read: list[int] = []
    found = deltaw.survey(
        tiny_base,
        adapters,
        out=out,
        jobs=1,
        progress=lambda stage, d, t: read.append(d) if stage == "reading" else None,
    )
    assert read == [6, 7, 8]
    undisturbed = deltaw.survey(tiny_base, adapters, jobs=1)
    for table in ("adapters", "pairs", "pairs_by_kind", "neighbours", "spectra"):
        pd.testing.assert_frame_equal(getattr(found, table)(), getattr(undisturbed, table)(), check_exact=True)
    left = {p.name for p in out.iterdir() if not p.name.startswith(".deltaw-lock")}
    assert left == {"adapters.csv", "neighbours.csv", "pairs.csv", "pairs_by_kind.csv", "spectra.csv", "survey.json"}


def test_a_disk_that_cannot_hold_all_sketches_is_one_line(
    tiny: Callable[..., Path], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for i in range(4):
        tiny(f"a{i}", 0, i)
    monkeypatch.setattr(run, "EXACT", 3)
    with monkeypatch.context() as full:
        full.setattr(SurveyFolder, "scratch", tmp_path / "gone" / "scratch")
        with pytest.raises(ResultsError, match=r"out: cannot be written \(No such.*\); free some space and run again"):
            deltaw.survey(tiny_base, tmp_path / "adapters", out=tmp_path / "out")
    monkeypatch.setattr(run, "look", lambda *_: pytest.fail("it was read again"))
    assert deltaw.survey(tiny_base, tmp_path / "adapters", out=tmp_path / "out").about.compared == "sketched"
