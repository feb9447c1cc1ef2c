"""docs/metrics.md is the registry's table, and its worked example is what the real pair shows."""

import re
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import deltaw
from deltaw.metrics import REGISTRY, markdown_table

TEXT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
QUERY, WORDS = "encoder.layer.5.attention.self.query.weight", "embeddings.word_embeddings.weight"


def cells(start: str, end: str) -> list[list[str]]:
    """The rows of the table between two phrases."""
    part = TEXT[TEXT.index(start) : TEXT.index(end)]
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("| `")]
    assert lines
    return lines


def agrees(text: str, value: object) -> bool:
    """Whether a printed figure is the value at the digits that it shows."""
    if isinstance(value, str):
        return text == value
    if float(text) == 0:
        return float(value) == 0
    digits = len(re.sub(r"^0+", "", text.lstrip("-").replace(".", "")))
    return float(f"{float(value):.{digits - 1}e}") == float(text)


@pytest.fixture(scope="module")
def frame(real_pair, tmp_path_factory):
    return deltaw.analyze(*real_pair, alignment=True, cache=False).to_pandas().set_index("name")


def test_the_table_is_the_registry():
    assert markdown_table() in TEXT, "run `deltaw metrics --format markdown` and put its output under 'All metrics'"


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [(QUERY, "### `encoder.layer.5", "### `embeddings"), (WORDS, "### `embeddings", "The other matrices scatter")],
)
def test_the_worked_example(frame, name, start, end):
    for column, text, _ in cells(start, end):
        assert agrees(text, frame.loc[name, column.strip("`")]), (column, text, frame.loc[name, column.strip("`")])


def test_the_pair_in_bfloat16(frame, real_pair, tmp_path):
    for name, path in zip(("base", "ft"), real_pair, strict=True):
        state = {k: v.bfloat16() if v.is_floating_point() else v for k, v in load_file(path).items()}
        save_file(state, tmp_path / f"{name}.safetensors")
    rounded = deltaw.analyze(tmp_path / "base.safetensors", tmp_path / "ft.safetensors")
    coarse = rounded.to_pandas().set_index("name")
    for column, wide, narrow, _ in cells("## The same pair in bfloat16", "In the word embeddings"):
        column = column.strip("`")
        assert agrees(wide, frame.loc[QUERY, column]), (column, frame.loc[QUERY, column])
        assert agrees(narrow, coarse.loc[QUERY, column]), (column, coarse.loc[QUERY, column])
    assert coarse.loc[WORDS, "decay_rows_fraction"] < 5e-4
    assert rounded.summary.decay.gate.in_the_way
    assert not rounded.summary.decay.visible


def test_the_verdict_on_decay(frame):
    decay = deltaw.results.summarize.summarize(frame.reset_index().to_dict("records")).decay
    assert decay.evidence == "rows"
    assert decay.value == pytest.approx(9.5e-5, rel=0.02)
    assert frame.loc[WORDS, "decay_rows_fraction"] > 0.9


def test_every_metric_is_written_about():
    for name in REGISTRY:
        assert f"`{name}`" in TEXT
