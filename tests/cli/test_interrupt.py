"""Ctrl-C: exit code 130 and one line from every command, at once, and `compare` goes on where it was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import deltaw
from deltaw.cli import main
from tests.conftest import changed, save_single

ARGUMENTS = {
    "analyze": ["a", "b"],
    "inspect": ["a", "b"],
    "compare": ["runs.toml"],
    "study": ["--out", "o"],
    "report": ["a"],
    "verify": ["a", "b", "c"],
    "metrics": [],
    "demo": [],
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_command_ends_with_130_and_one_line(name: str, monkeypatch: pytest.MonkeyPatch):
    command = main.get_command(main.make_context("deltaw", [name]), name)
    assert command is not None
    monkeypatch.setattr(command, "callback", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(os, "_exit", sys.exit)
    result = CliRunner().invoke(main, [name, *ARGUMENTS[name]])
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr.strip() == "Interrupted. Run the same command again."


def test_compare_keeps_finished_analyses_and_ends_at_once(tmp_path: Path):
    torch.manual_seed(0)
    base = {f"layers.{i}.w.weight": torch.randn(400, 400) for i in range(40)}
    save_single(base, tmp_path / "base")
    text = 'base = "base"\n'
    for i in range(2):
        save_single(changed(base, seed=i), tmp_path / f"ft{i}")
        text += f'[[runs]]\nname = "ft{i}"\ncheckpoint = "ft{i}"\n'
    (tmp_path / "runs.toml").write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    command = [sys.executable, "-c", "from deltaw.cli import main; main()", "compare", str(tmp_path / "runs.toml")]
    command += ["--out", str(out), "--no-report", "--jobs", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measured(run: str) -> int:
        return sum(j.read_bytes().count(b"\n") for j in out.glob(f"analyses/{run}-*/.deltaw-journal.jsonl"))

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and measured("ft1") < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    assert "terminate called" not in stderr
    line = stderr.strip().splitlines()[-1]
    assert line == (
        f"Interrupted. Finished analyses are kept in {out / 'analyses'} and found again; "
        "run the same command again to go on."
    )
    started: list[str] = []
    deltaw.compare(tmp_path / "runs.toml", out=out, jobs=1, progress=lambda run, *_: started.append(run))
    assert started == ["ft1"]
