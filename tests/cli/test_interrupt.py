"""Ctrl-C: exit code 130 and one line from every command, at once, and `compare` goes on where it was."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import deltaw
from deltaw.cli import interrupt, main
from tests.conftest import changed, save_single

ARGUMENTS = {
    "analyze": ["a", "b"],
    "inspect": ["a", "b"],
    "compare": ["runs.toml"],
    "survey": ["a", "b"],
    "study": ["--out", "o"],
    "report": ["a"],
    "verify": ["a", "b", "c"],
    "metrics": [],
    "demo": [],
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_command_ends_with_130_and_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    command = main.get_command(main.make_context("deltaw", [name]), name)
    assert command is not None
    monkeypatch.setattr(command, "callback", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setattr(interrupt, "_kept", [])  # of what another test has run here
    result = CliRunner().invoke(main, [name, *ARGUMENTS[name]])
    assert result.exit_code == 130
    assert result.stdout == ""
    assert capfd.readouterr().err.strip() == "Interrupted. Run the same command again."


STARTED = (
    "import os; from deltaw.cli import interrupt, run; interrupt.install(); "
    "os.write(1, b'.'); run()"  # from the dot on the handlers are ours: the interpreter's own start is not
)


@pytest.mark.parametrize(("number", "code", "word"), [(2, 130, "Interrupted"), (15, 143, "Terminated")])
@pytest.mark.parametrize("times", [1, 3])
def test_a_signal_at_any_moment_is_one_line(number: int, code: int, word: str, times: int, tmp_path: Path):
    """While modules are imported, files opened, matrices measured and the report written; once, or thrice."""
    torch.manual_seed(0)
    base = {f"layers.{i}.w.weight": torch.randn(60, 60) for i in range(200)}
    folders = save_single(base, tmp_path / "base"), save_single(changed(base), tmp_path / "ft")
    for moment in np.random.default_rng(number + times).uniform(0, 2.5, 3):
        command = [
            sys.executable,
            "-c",
            STARTED,
            "analyze",
            *map(str, folders),
            "--out",
            str(tmp_path / "o"),
            "--fresh",
        ]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.read(1)
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            for _ in range(times):
                process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
        said = stderr.decode()
        assert "Traceback" not in said
        assert process.returncode in {0, code}, (moment, said)
        if process.returncode:
            assert said.count(word) == 1, (moment, said)


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
    command = [sys.executable, "-c", "from deltaw.cli import run; run()", "compare", str(tmp_path / "runs.toml")]
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
