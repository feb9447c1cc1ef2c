"""The YAML of docs/ci.md does what the page says: its steps' commands are run, with a `pip` that only writes down."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from tests.conftest import State, changed, save_lora, save_single

PAGE = (Path(__file__).parent.parent / "docs" / "ci.md").read_text(encoding="utf-8")
WORKFLOW, MERGED, PRE_COMMIT = (yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S))
VARIABLES = {"BASE": "base", "DELTAW_REPOSITORY": "https://example.org/deltaw"}


@pytest.fixture
def repository(pico: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page speaks of: a base, an adapter; `checkpoint` and `merged` are each test's."""
    monkeypatch.chdir(tmp_path)
    save_single(pico, Path("base"))
    save_lora(Path("adapter"))
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "pip").write_text('#!/bin/sh\necho "$@" >> pip.txt\n')
    (tools / "pip").chmod(0o755)
    return tmp_path


def run(step: Mapping[str, Any], folder: Path) -> int:
    """The exit code of a step's commands, as the service runs them: bash, which ends where one fails."""
    command = re.sub(r"\$\{\{ vars\.(\w+) \}\}", lambda m: VARIABLES[m[1]], step["run"])
    assert "${{" not in command
    path = os.pathsep.join([str(folder / "tools"), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {"PATH": path, "GITHUB_STEP_SUMMARY": str(folder / "summary.md")}
    return subprocess.run(
        ["bash", "-eo", "pipefail", "-c", command], env=env, capture_output=True, check=False
    ).returncode


def job(folder: Path) -> list[int | None]:
    """The exit code of every step with commands, in order; None where one before it had failed."""
    codes: list[int | None] = []
    for step in WORKFLOW["jobs"]["deltaw"]["steps"]:
        if "run" in step:
            skipped = any(codes) and step.get("if") != "always()"
            codes.append(None if skipped else run(step, folder))
    return codes


@pytest.mark.slow
def test_the_workflow_passes_a_checkpoint_and_keeps_its_report(pico: State, repository: Path) -> None:
    save_single(changed(pico, 5e-3), Path("checkpoint"))
    assert job(repository) == [0, 0, 0, 0]
    assert "deltaw @ git+https://example.org/deltaw" in Path("pip.txt").read_text()
    assert re.search(r"^## base → checkpoint: \w+", Path("summary.md").read_text())
    (upload,) = (
        s["with"]["path"] for s in WORKFLOW["jobs"]["deltaw"]["steps"] if "upload-artifact" in s.get("uses", "")
    )
    assert (Path(upload) / "report.html").is_file()


@pytest.mark.slow
def test_the_workflow_fails_a_checkpoint_that_drifts_and_still_says_why(pico: State, repository: Path) -> None:
    save_single({n: t + 1.0 for n, t in pico.items()}, Path("checkpoint"))
    assert job(repository) == [0, 0, 5, 0]
    assert "These are not a base and its fine-tune" in Path("summary.md").read_text()


def test_what_was_merged(pico: State, repository: Path) -> None:
    save_single(pico, Path("merged"))
    (step,) = MERGED
    assert run(step, repository) == 4, "the adapter is not in it"


def test_the_hook_runs_on_a_checkpoint_and_fails_on_what_does_not_pair(pico: State, repository: Path) -> None:
    (hook,) = PRE_COMMIT["repos"][0]["hooks"]
    assert re.match(hook["files"], "checkpoint/model.safetensors")
    step = {"run": hook["entry"]}
    save_single(changed(pico, 5e-3), Path("checkpoint"))
    assert run(step, repository) == 0
    save_file({"x.weight": torch.ones(3, 4)}, "checkpoint/model.safetensors")
    assert run(step, repository) == 1
