"""A saved comparison reads back whole: the same tables, the same report, in every form."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import deltaw
from deltaw.cli.program import main
from deltaw.comparison import Comparison
from deltaw.comparison.tables import NAMES
from deltaw.errors import ResultsError
from deltaw.reports import comparison_exports


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Full fine-tuning and LoRA with two seeds each, and a group of scores only; weights on disk."""
    folder = tmp_path_factory.mktemp("runs")
    g = torch.Generator().manual_seed(0)
    names = [f"model.layers.{i}.{m}.weight" for i in range(3) for m in ("self_attn.q_proj", "mlp.up_proj")]
    base = {n: torch.randn(24, 32, generator=g) for n in names}
    save_file(base, folder / "base.safetensors")
    lines = ['title = "A | b"', 'base = "base.safetensors"']
    for group, rank in (("full", 24), ("LoRA", 2)):
        for seed in range(2):
            thin = {n: torch.randn(24, rank, generator=g) @ torch.randn(rank, 32, generator=g) for n in names}
            save_file({n: w + 0.01 * thin[n] for n, w in base.items()}, folder / f"{group}-{seed}.safetensors")
            lines += ["[[runs]]", f'name = "{group} {seed}"', f'checkpoint = "{group}-{seed}.safetensors"']
            lines += [f'group = "{group}"', f"seed = {seed}", "tokens = 1_000", "[runs.hyperparameters]"]
            lines += [f"rank = {rank}", "modules = ['q', 'up']", "warm = true", "[runs.scores]"]
            lines += [f"learning = {0.3 + 0.01 * rank + 0.001 * seed}", f"retention = {0.6 - 0.001 * seed}"]
    lines += ["[[runs]]", 'name = "other"', 'group = "other"', "[runs.scores]", "learning = 0.2", "retention = 0.7"]
    (folder / "runs.toml").write_text("\n".join(lines))
    result = CliRunner().invoke(main, ["compare", str(folder / "runs.toml"), "--out", str(folder / "out"), "-q"])
    assert result.exit_code == 0, result.output
    return folder


def test_every_table_and_the_report_read_back(saved: Path, tmp_path: Path):
    first = deltaw.compare(saved / "runs.toml", out=saved / "out")
    second = Comparison.load(saved / "out")
    for name in NAMES:
        pd.testing.assert_frame_equal(getattr(second, name)(), getattr(first, name)(), check_dtype=False)
    assert len(second.similarity())
    about = [c.about for c in (first, second)]
    assert about[0].base == about[1].base
    assert about[0].warnings == about[1].warnings
    assert about[0].origin.command == f"deltaw compare {saved / 'runs.toml'}"
    pages = [c.report(tmp_path / "report.html").read_text() for c in (second, second, Comparison.load(saved / "out"))]
    assert pages[0] == pages[1] == pages[2]
    assert (saved / "out" / "report.html").read_text() == pages[0]


def test_it_needs_neither_weights_nor_manifest(saved: Path, tmp_path: Path):
    moved = tmp_path / "elsewhere"
    (saved / "out").rename(moved)
    try:
        assert len(Comparison.load(moved).similarity())
        result = CliRunner().invoke(main, ["report", str(moved), "--out", str(tmp_path / "again.html")])
        assert result.exit_code == 0, result.output
        assert (tmp_path / "again.html").read_text() == (moved / "report.html").read_text()
        assert (tmp_path / "figures" / "pareto.pdf").exists()
    finally:
        moved.rename(saved / "out")


def test_reports_in_other_forms(saved: Path):
    def printed(form: str) -> str:
        result = CliRunner().invoke(main, ["report", str(saved / "out"), form])
        assert result.exit_code == 0, result.output
        return result.output

    markdown = printed("--markdown")
    assert markdown.startswith("## A \\| b\n")
    assert "| group | seeds |" in markdown.replace("\\_", "_")
    assert "**cannot tell**" in markdown
    assert f": `deltaw compare {saved / 'runs.toml'}`" in markdown
    assert markdown == comparison_exports.markdown(Comparison.load(saved / "out"))
    latex = printed("--latex")
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1
    assert "LoRA &" in latex
    refused = CliRunner().invoke(main, ["report", str(saved / "out"), "--card"])
    assert refused.exit_code == 2
    assert "has no model card; try --markdown" in refused.output


def test_provenance_is_on_the_page(saved: Path):
    page = (saved / "out" / "report.html").read_text()
    end = page[page.index('id="reproduce"') :]
    for expected in (f"deltaw compare {saved / 'runs.toml'}", "sampled-sha256:", torch.__version__, "Seed of the boot"):
        assert expected in end


def test_what_cannot_be_read_says_so(saved: Path, tmp_path: Path):
    with pytest.raises(ResultsError, match="no such directory; expected a directory that compare wrote"):
        Comparison.load(tmp_path / "none")
    with pytest.raises(ResultsError, match=r"no comparison\.json there"):
        Comparison.load(tmp_path)
    with pytest.raises(ResultsError, match=r"It holds a comparison: Comparison\.load"):
        deltaw.load(saved / "out")
    for name, text, match in (
        ("runs.json", "[]", "expected an object"),
        ("runs.json", json.dumps({"runs": [{"name": 3}]}), "'name' is 3; expected a text"),
        ("comparison.json", "{}", "'reference' is missing"),
        ("layers.csv", "run\n1,2,3\n", "run compare again"),
        ("spectra.csv", "run,kind\nfull 0,mlp\n", "run compare again"),
    ):
        kept = (saved / "out" / name).read_text()
        (saved / "out" / name).write_text(text)
        try:
            with pytest.raises(ResultsError, match=match):
                Comparison.load(saved / "out")
        finally:
            (saved / "out" / name).write_text(kept)
    kept = (saved / "out" / "runs.json").read_text()
    (saved / "out" / "runs.json").unlink()
    try:
        with pytest.raises(ResultsError, match="an older deltaw wrote it, or it was interrupted"):
            Comparison.load(saved / "out")
    finally:
        (saved / "out" / "runs.json").write_text(kept)


@pytest.mark.parametrize("text", ["{}", '{"runs": []}'])
def test_a_comparison_without_runs(saved: Path, tmp_path: Path, text: str):
    shutil.copytree(saved / "out", tmp_path / "out")
    (tmp_path / "out" / "runs.json").write_text(text)
    with pytest.raises(ResultsError, match=r"runs.json: 0 runs; expected at least one"):
        Comparison.load(tmp_path / "out")
