"""Markdown, LaTeX and the model card: valid in their languages, whatever the names are."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from deltaw.cli import main
from deltaw.errors import ManifestError
from deltaw.reports import exports
from deltaw.reports.reasons import why, words
from deltaw.results.analysis import Analysis
from deltaw.results.sources import Source
from deltaw.types import Reason, Skipped


@pytest.fixture
def hostile(kit: Any) -> Analysis:
    names = iter(kit.hostile * 20)
    analysis = kit.make(kit.full(), layers=2, hidden=8, vocabulary=8, rename=lambda name: f"{name}.{next(names)}")
    return dataclasses.replace(analysis, ft=Source("models/a_b$c|d`e\n{x}\u202e"))


def test_markdown_has_the_sentences_and_the_table(full_analysis: Analysis):
    text = exports.markdown(full_analysis)
    assert text.startswith("## models/base → models/tuned: spread\n")
    assert "**30 of 30** matrices changed" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1
    assert rows[1].startswith("| --- | ---: |")
    assert "\ue000" not in text


def test_hostile_names_do_not_break_markdown(hostile: Analysis):
    text = exports.markdown(hostile)
    escaped = re.sub(r"\\.", "", text)
    assert "<script" not in re.sub(r"`[^`]*`", "", escaped)  # inside of code it is no HTML
    assert "\u202e" not in text
    rows = [re.sub(r"\\\|", "", line) for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1


def test_latex_is_escaped(hostile: Analysis, full_analysis: Analysis):
    text = exports.latex(hostile)
    assert r"a\_b\$c" in text
    assert r"\{x\}" in text
    for line in exports.latex(full_analysis).splitlines():
        assert not re.search(r"(?<!\\)[%#]", line)
    table = [line for line in exports.latex(full_analysis).splitlines() if line.endswith(r"\\")]
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in table}) == 1
    assert text.count(r"\begin{") == text.count(r"\end{")
    assert text.isprintable() or all(c == "\n" or c.isprintable() for c in text)


def front_matter(text: str) -> Any:
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_has_front_matter_that_the_hub_reads(full_analysis: Analysis):
    hub = dataclasses.replace(full_analysis, base=Source("org/base@abc"))
    front = front_matter(exports.card(hub))
    assert front["base_model"] == "org/base"
    assert front["base_model_relation"] == "finetune"
    assert front["tags"] == ["deltaw"]
    assert front["deltaw"]["verdict"] == "spread"
    assert front["deltaw"]["matrices_changed"] == 30
    assert front["deltaw"]["relative_change"] == pytest.approx(full_analysis.summary.change.median, rel=1e-5)
    local = dataclasses.replace(full_analysis, base=Source("/data/models/base"))
    assert "base_model" not in front_matter(exports.card(local))  # no path of one machine
    assert "figures/relative_change.png" in exports.card(local)


def scores(folder: Path, **values: float) -> Source:
    (folder / ".eval_results").mkdir(parents=True)
    for task, value in values.items():
        entry = EvalResultEntry(dataset_id="org/exam|x", task_id=task, value=value)
        (folder / ".eval_results" / f"{task}.yaml").write_text(yaml.dump(eval_result_entries_to_yaml([entry])))
    return Source(str(folder))


def test_the_card_has_the_scores_that_lie_beside_the_weights(full_analysis: Analysis, tmp_path: Path):
    assert "## Evaluation" not in exports.card(full_analysis)
    ft = scores(tmp_path / "ft", hard=0.41, easy=20.9)
    alone = exports.card(dataclasses.replace(full_analysis, ft=ft))
    assert "| benchmark | fine-tuned |" in alone
    assert "| org/exam\\|x: hard | 0.41 |" in alone
    both = exports.card(dataclasses.replace(full_analysis, ft=ft, base=scores(tmp_path / "base", hard=0.5)))
    assert "| org/exam\\|x: hard | 0.5 | 0.41 |" in both
    assert "| org/exam\\|x: easy |  | 20.9 |" in both
    (tmp_path / "ft" / ".eval_results" / "hard.yaml").write_text("- {dataset: {id: a/b}}")
    with pytest.raises(ManifestError, match=r"hard\.yaml.*'task_id' is missing"):
        exports.card(dataclasses.replace(full_analysis, ft=ft))


def test_huggingface_hub_takes_the_card_as_its_own(full_analysis: Analysis):
    from huggingface_hub import ModelCard

    text = exports.card(dataclasses.replace(full_analysis, base=Source("org/base")))
    data = ModelCard(text).data
    assert (data.base_model, data.tags) == ("org/base", ["deltaw"])
    assert data.to_dict()["base_model_relation"] == "finetune"
    assert front_matter(str(ModelCard(text))) == front_matter(text)  # and writes it again without loss


def test_the_card_of_hostile_names_is_yaml(hostile: Analysis):
    assert front_matter(exports.card(hostile))["deltaw"]["matrices"] == 16


def test_what_changed_nothing_has_a_card_without_a_figure(kit: Any):
    text = exports.card(kit.make(kit.nothing))
    assert "Nothing changed" in text
    assert "figures/" not in text


def test_the_command_prints_and_writes_nothing(full_analysis: Analysis, tmp_path: Any):
    full_analysis.save(tmp_path / "out")
    before = sorted((tmp_path / "out").iterdir())
    for form in exports.markdown, exports.latex, exports.card:
        result = CliRunner().invoke(main, ["report", str(tmp_path / "out"), f"--{form.__name__}"])
        assert result.exit_code == 0, result.output
        assert result.stdout == form(full_analysis)
    assert sorted((tmp_path / "out").iterdir()) == before
    assert result.stderr.endswith(f"does not have: deltaw report {tmp_path / 'out'} writes it\n")
    (tmp_path / "out" / "figures").mkdir()
    (tmp_path / "out" / exports.FIGURE).touch()
    assert CliRunner().invoke(main, ["report", str(tmp_path / "out"), "--card"]).stderr == ""
    both = CliRunner().invoke(main, ["report", str(tmp_path / "out"), "--latex", "--card"])
    assert both.exit_code == 2
    assert "--latex and --card: give one of them" in both.stderr


def test_every_reason_has_words():
    for reason in Reason:
        assert "_" not in words(reason)
    assert why(Skipped("a", Reason.TIED_TO, subject="b.c")) == "the same tensor as b.c"
    assert why(Skipped("a", Reason.QUANTISED, subject="gptq")) == "quantised: gptq"
    assert why(Skipped("a", Reason.ONLY_IN_BASE)) == "only in the base"
