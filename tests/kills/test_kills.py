"""A few moments of `python -m tests.kills`, which takes every command."""

import sys
from pathlib import Path

import pytest

from tests.kills.cases import kill_and_run_again, moments, undisturbed, write_inputs

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills processes by POSIX signals")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills") / "inputs"
    write_inputs(folder, results=False)
    return folder


@pytest.mark.parametrize("name", ["extract", "edit", "analyze an adapter"])
def test_killed_and_run_again(name: str, inputs: Path, tmp_path: Path):
    honest = undisturbed(name, inputs, tmp_path / "work")
    assert honest.code == 0
    assert "out/extraction.csv" in honest.files or "out/edit.csv" in honest.files or "out/layers.csv" in honest.files
    (moment,) = [moment for command, moment in moments(seed=1, count=13) if command == name]
    assert kill_and_run_again(name, honest, inputs, tmp_path / "work", moment._replace(share=0.8 * moment.share))
