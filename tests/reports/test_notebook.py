"""What a terminal and a notebook show of a result."""

import re
from typing import Any

import pytest

import deltaw
from deltaw.reports import notebook
from deltaw.results.analysis import Analysis
from deltaw.results.sources import Source
from tests.conftest import changed, pico_state
from tests.reports.elements import Page


def test_one_line_however_large(full_analysis: Analysis, kit: Any):
    assert repr(full_analysis).startswith("<deltaw.Analysis: models/base → models/tuned, 39 of 39 tensors changed, ")
    for analysis in (full_analysis, kit.many(2000), kit.make(kit.nothing), Analysis([])):
        assert len(repr(analysis)) <= 200
        assert "\n" not in repr(analysis)


def test_long_and_hostile_names_stay_in_the_line():
    path = Source(path="a/" + "x\n\u202e" * 300)
    line = repr(Analysis([], base=path, ft=path))
    assert len(line) <= 200
    assert "\n" not in line
    assert "\u202e" not in line


def test_an_inspection_and_a_verification_are_one_line():
    base = pico_state()
    found = deltaw.inspect(base, changed(base))
    assert repr(found) == "<deltaw.Inspection: <dict> → <dict>, 21 to measure, 0 skipped>"
    verdict = deltaw.Verification("b", "a", "m", ())
    assert "tensors" not in repr(verdict)


def test_the_html_of_an_analysis_stands_alone(full_analysis: Analysis):
    html = full_analysis._repr_html_()
    page = Page(html)
    tags = {tag for tag, _ in page.elements}
    assert {"table", "svg"} <= tags
    assert not tags & {"script", "style", "link", "a", "img"}
    assert "class=" not in html
    assert "matrices changed" in html
    assert len(html) < 200_000


def test_two_results_in_one_page_share_no_id(full_analysis: Analysis):
    ids = [re.findall(r'\bid="([^"]+)"', full_analysis._repr_html_()) for _ in range(2)]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])


def test_hostile_names_in_a_notebook(kit: Any):
    names = iter(kit.hostile * 20)
    analysis = kit.make(kit.full(), layers=2, hidden=8, vocabulary=8, rename=lambda name: f"{name}.{next(names)}")
    html = analysis._repr_html_()
    assert "<script" not in html
    assert "<img" not in html


def test_what_changed_nothing_has_sentences_only(kit: Any):
    html = kit.make(kit.nothing)._repr_html_()
    assert "Nothing changed" in html
    assert Analysis([])._repr_html_()


def test_the_html_of_an_inspection():
    base = pico_state()
    html = deltaw.inspect(base, changed(base))._repr_html_()
    assert "model.layers.{0..1}.mlp.up_proj.weight ×2" in html


@pytest.mark.parametrize("count", [notebook.ROWS, notebook.ROWS + 3])
def test_long_tables_say_how_much_is_left_out(count: int):
    html = notebook.simple_table(("a",), [(str(i),) for i in range(count)])
    assert html.count("<tr>") == 1 + min(count, notebook.ROWS)
    assert ("and 3 more" in html) == (count > notebook.ROWS)


def test_a_comparison(full_analysis: Analysis, lora_analysis: Analysis):
    comparison = deltaw.compare({"full": full_analysis, "LoRA": full_analysis})
    assert repr(comparison).startswith("<deltaw.Comparison: ")
    assert len(repr(comparison)) <= 200
    assert "LoRA" in comparison._repr_html_()


def test_a_summary(full_analysis: Analysis, kit: Any):
    summary = full_analysis.summary
    assert repr(summary) == "<deltaw.Summary: spread, 39 of 39 tensors changed, median relative change 2 %>"
    assert "matrices changed" in summary._repr_html_()
    assert len(repr(Analysis([]).summary)) <= 200
    assert "nan" not in repr(kit.make(kit.nothing).summary)
