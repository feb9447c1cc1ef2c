"""What `pip install deltaw` alone can do, without any extra. `make minimal` runs this in an environment of its own."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import deltaw
import deltaw.cli
import deltaw.reports
from deltaw.cli.program import COMMANDS
from tests.conftest import save_lora

pytestmark = pytest.mark.minimal
ROOT = Path(__file__).parents[2]
ALONE = os.environ.get("DELTAW_MINIMAL") == "1"


def run(*arguments: object, at: Path) -> subprocess.CompletedProcess[str]:
    """The installed command, outside of the sources."""
    command = [str(Path(sys.executable).parent / "deltaw"), *map(str, arguments)]
    return subprocess.run(command, cwd=at, capture_output=True, text=True, check=False)


def required(package: str) -> set[str]:
    """The installed packages that one asks for without its extras, and those that they ask for."""
    found, waiting = set(), [package]
    while waiting:
        name = waiting.pop()
        if name not in found and is_installed(name):
            found.add(name)
            asked = map(Requirement, importlib.metadata.requires(name) or [])
            waiting += [
                canonicalize_name(r.name) for r in asked if r.marker is None or r.marker.evaluate({"extra": ""})
            ]
    return found


def of_extras_only() -> set[str]:
    """The packages that only an extra of deltaw brings."""
    asked = [Requirement(line) for line in importlib.metadata.requires("deltaw") or [] if "extra ==" in line]
    return {canonicalize_name(r.name) for r in asked} - required("deltaw") - {"deltaw", "pytest"}


def is_installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.skipif(not ALONE, reason="this environment has extras; make minimal runs it in one that has none")
def test_no_extra_is_there():
    assert {"peft", "transformers"} <= of_extras_only()
    assert [name for name in of_extras_only() if is_installed(name)] == []
    assert not Path(deltaw.__file__).is_relative_to(ROOT / "deltaw")


@pytest.mark.parametrize(
    ("folder", "package"),
    [("deltaw", deltaw), ("cli", deltaw.cli), ("reports", deltaw.reports)],
    ids=["deltaw", "cli", "reports"],
)
def test_every_file_of_the_sources_is_installed(folder, package):
    """A package that pyproject.toml does not list, or a kind of file that its package-data leaves out."""
    sources = {p.relative_to(ROOT / folder) for p in (ROOT / folder).rglob("*") if p.is_file()}
    sources = {p for p in sources if "__pycache__" not in p.parts}
    there = Path(package.__file__).parent
    assert [str(p) for p in sorted(sources) if not (there / p).is_file()] == []


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command, tmp_path):
    done = run(*filter(None, [command]), "--help", at=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: deltaw {command}".rstrip())


def test_an_analysis(pico_pair, tmp_path):
    done = run("analyze", *pico_pair, "--out", "out", "--alignment", at=tmp_path)
    assert done.returncode == 0, done.stderr
    left = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"layers.csv", "layers.parquet", "spectra.safetensors", "analysis.json", "report.html", "figures"} <= left
    rows = pd.read_csv(tmp_path / "out" / "layers.csv")
    assert (rows["route"] == "dense").sum() == 14
    again = run("report", "out", at=tmp_path)
    assert again.returncode == 0, again.stderr


def test_a_lora_and_a_comparison(pico_pair, tmp_path):
    base, tuned = pico_pair
    for name, ft in {"lora-s0": save_lora(tmp_path / "lora"), "full-s0": tuned}.items():
        done = run("analyze", base, ft, "--out", name, "--no-report", at=tmp_path)
        assert done.returncode == 0, done.stderr
    done = run("compare", "lora-s0", "full-s0", "--out", "compared", at=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "compared" / "report.html").is_file()


@pytest.mark.skipif(is_installed("peft"), reason="peft is installed; make minimal runs it without")
def test_what_needs_an_extra_says_which(pico_pair, tmp_path):
    done = run("analyze", pico_pair[0], save_lora(tmp_path / "ia3", peft_type="IA3"), at=tmp_path)
    assert done.returncode == 1
    assert "pip install 'deltaw[peft]'" in done.stderr
    assert "Traceback" not in done.stderr
    done = run("study", "--preset", "quick", "--out", "study", at=tmp_path)
    assert done.returncode == 1
    assert "pip install 'deltaw[study]'" in done.stderr
    assert "Traceback" not in done.stderr
