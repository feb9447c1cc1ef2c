"""`deltaw compare` end to end: files, JSON, exit codes, one clear line for each problem."""

import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

import deltaw
from deltaw.cli import main
from tests.conftest import changed, pico_state, save_single


def run(*args: object) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, args)])


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A base, two fine-tunes of it, and a manifest."""
    base = pico_state()
    save_single(base, tmp_path / "base")
    text = 'title = "Pico"\nbase = "base"\n'
    for i, name in enumerate(("full-a", "full-b", "other")):
        save_single(changed(base, scale=1e-3 * (1 + i // 2), seed=i + 1), tmp_path / name)
        group = "full" if i < 2 else "other"
        text += f'[[runs]]\nname = "{name}"\ncheckpoint = "{name}"\ngroup = "{group}"\nmethod = "full"\nseed = {i}\n'
        text += f"[runs.scores]\nlearning = {0.3 + 0.01 * i}\nretention = {0.5 - 0.01 * i}\n"
    (tmp_path / "runs.toml").write_text(text, encoding="utf-8")
    return tmp_path


def test_files_and_reuse(pair: Path) -> None:
    out = pair / "out"
    result = run(pair / "runs.toml", "--out", out, "--jobs", 1)
    assert result.exit_code == 0, result.output
    for name in ("runs.csv", "layers.csv", "contrasts.csv", "claims.csv", "report.html", "figures/pareto.svg"):
        assert (out / name).stat().st_size > 0
    contrasts = pd.read_csv(out / "contrasts.csv")
    assert set(contrasts["group_a"]) == {"full"}
    assert contrasts.set_index("metric").loc["relative_change", "median_ratio"] == pytest.approx(0.5, rel=0.05)
    assert len(pd.read_csv(out / "similarity.csv")) > 0
    before = {p: p.stat().st_mtime_ns for p in (out / "analyses").rglob("analysis.json")}
    assert len(before) == 3
    again = run(pair / "runs.toml", "--out", out, "-q", "--no-report")
    assert again.exit_code == 0
    assert again.output == ""
    assert {p: p.stat().st_mtime_ns for p in (out / "analyses").rglob("analysis.json")} == before


def test_json_is_all_there_is_on_stdout(pair: Path) -> None:
    result = CliRunner().invoke(
        main, ["compare", str(pair / "runs.toml"), "--out", str(pair / "o"), "--json", "--no-report", "--jobs", "1"]
    )
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["groups"] == ["full", "other"]
    assert {"runs", "contrasts", "fingerprints", "fronts", "claims", "similarity"} <= set(document)


def test_result_directories(pair: Path) -> None:
    for name in ("full-a", "other"):
        deltaw.analyze(pair / "base", pair / name, out=pair / f"r-{name}", jobs=1)
    result = run(pair / "r-full-a", pair / "r-other", "--out", pair / "c", "--no-report")
    assert result.exit_code == 0, result.output
    assert list(pd.read_csv(pair / "c" / "runs.csv")["run"]) == ["r-full-a", "r-other"]


def test_problems_are_one_line_each(pair: Path) -> None:
    path = pair / "bad.toml"
    path.write_text('[[runs]]\nname = "a"\nfoo = 1\n[runs.scores]\nlearning = nan\n', encoding="utf-8")
    result = run(path, "--out", pair / "x")
    assert result.exit_code == 1
    lines = result.output.strip().splitlines()
    assert [line.split(": ")[1].rsplit(":", 1)[1] for line in lines] == ["3", "5"]
    assert not (pair / "x").exists()
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["nothing.toml"], 1, "cannot be read"),
        (["."], 1, "no analysis.json"),
        ([], 2, "Missing argument"),
        (["x.toml", "y.toml"], 1, "given alone"),
    ],
)
def test_bad_arguments(args: list[str], code: int, words: str, pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pair)
    result = run(*args, *(["--out", "o"] if args else []))
    assert result.exit_code == code
    assert words in result.output
    assert len(result.output.strip().splitlines()) == (1 if code == 1 else 4)


def test_an_unknown_reference_and_a_foreign_directory(pair: Path) -> None:
    result = run(pair / "runs.toml", "--out", pair / "o", "--reference", "ful")
    assert result.exit_code == 2
    assert "Did you mean 'full'" in result.output
    deltaw.analyze(pair / "base", pair / "other", out=pair / "results", jobs=1)
    result = run(pair / "runs.toml", "--out", pair / "results")
    assert result.exit_code == 1
    assert "results of an analysis" in result.output


def test_results_of_another_base_are_one_line(pair: Path) -> None:
    save_single({k.replace(".", "_"): v for k, v in pico_state(seed=1).items()}, pair / "foreign")
    save_single({k.replace(".", "_"): v for k, v in changed(pico_state(seed=1)).items()}, pair / "foreign-ft")
    deltaw.analyze(pair / "base", pair / "other", out=pair / "r0", jobs=1)
    deltaw.analyze(pair / "foreign", pair / "foreign-ft", out=pair / "r1", jobs=1)
    result = run(pair / "r0", pair / "r1", "--out", pair / "c")
    assert result.exit_code == 1
    assert "run 'r1' has no tensor in common with run 'r0'" in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (pair / "c").exists()
