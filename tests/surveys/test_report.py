"""The report of a survey: what it says, holds and survives; and in a real browser, quiet, live, dark, narrow."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import deltaw
from benchmarks.many_adapters import task_factors, write_adapter
from deltaw.cli import main
from deltaw.errors import OptionError
from deltaw.reports import survey_findings as findings
from deltaw.reports.survey import LISTED, READINGS, embedded, flagged, html
from deltaw.reports.survey_findings import answer, five
from deltaw.reports.survey_plots import DRAWN
from deltaw.reports.text import unmarked
from deltaw.surveys.flags import RULES
from deltaw.surveys.merging import Interference, Merge, MergeShare
from deltaw.surveys.pairs import BY_KIND, COLUMNS
from deltaw.surveys.tables import ADAPTERS, NEIGHBOURS, SPECTRA, SurveyRecord, Tables
from tests.reports.conftest import HOSTILE
from tests.reports.laid_out import faults
from tests.surveys.conftest import TINY


def made_up(count: int, layers: int = 2) -> deltaw.Survey:
    """A survey of as many adapters, in ten clusters, from made-up numbers."""
    rng = np.random.default_rng(0)
    names = [f"team-{i % 7}/task-{i % 10}-run-{i}" for i in range(count)]
    at = rng.normal(size=(10, 4))[np.arange(count) % 10] + 0.1 * rng.normal(size=(count, 4))
    near = [names[(i + 10) % count] for i in range(count)]
    frame = pd.DataFrame(
        {
            "name": names,
            "rank": rng.choice([4.0, 8.0, 16.0], count),
            "matrices": 7.0 * layers,
            "fro_norm": rng.lognormal(size=count),
            "relative_change": 0.01 * rng.lognormal(size=count),
            "effective_rank": rng.uniform(2, 8, count),
            "energy_at_1": rng.uniform(0.2, 0.9, count),
            "factor_balance": 1 + rng.exponential(size=count),
            "cluster": 1.0 + np.arange(count) % 10,
            "nearest": near,
            "nearest_cosine": rng.uniform(0.3, 0.9, count),
            "flags": ["duplicate" if i % 97 == 5 else "" for i in range(count)],
            "why": ["duplicate: of another" if i % 97 == 5 else "" for i in range(count)],
            "method": "lora",
            "format": "peft lora",
            "base_name": "org/base",
            "parameters": 1e6,
            "untrained": 0,
            **{f"map_{k + 1}": at[:, k] for k in range(4)},
            "reason": "",
            "notes": "",
            "source": [f"adapters/{n}" for n in names],
        }
    )[list(ADAPTERS)]
    pairs = pd.DataFrame({"a": names, "b": near}).reindex(columns=list(COLUMNS))
    pairs["cosine"] = frame["nearest_cosine"]
    order = np.arange(count).repeat(8)
    neighbours = pd.DataFrame(
        {
            "name": np.array(names)[order],
            "neighbour": np.array(names)[(order + np.tile(np.arange(1, 9), count)) % count],
            "cosine": 0.5,
            "cosine_low": 0.48,
            "cosine_high": 0.52,
        }
    )[list(NEIGHBOURS)]
    blocks = pd.MultiIndex.from_product([names, range(layers), ["attention", "mlp"]], names=list(SPECTRA[:3]))
    spectra = blocks.to_frame(index=False).assign(matrices=3, fro_norm=0.1, base_fro_norm=10.0)
    for i in range(8):
        spectra[f"sigma_{i + 1}"] = rng.exponential(size=len(spectra)) / (i + 1)
    tables = Tables(frame, pairs, pd.DataFrame(columns=list(BY_KIND)), neighbours, spectra[list(SPECTRA)])
    about = SurveyRecord(base="org/base", compared="sketched", rules=RULES, versions={"deltaw": "0"})
    return deltaw.Survey(tables, about)


@pytest.fixture(scope="module")
def folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A survey that the command line made: two tasks, a copy, one that is broken, names of hostile people."""
    at = tmp_path_factory.mktemp("survey")
    for i in range(6):
        factors = task_factors(TINY, i // 3, i, rank=2)
        write_adapter(at / "adapters" / (f"task-{i // 3}-run-{i}" if i else "<b>x&amp;"), factors)
    write_adapter(at / "adapters" / "copy", task_factors(TINY, 1, 5, rank=2, size=2))
    (at / "adapters" / "broken").mkdir()
    (at / "adapters" / "broken" / "adapter_config.json").write_text("{}")
    arguments = ["survey", str(tiny_base), str(at / "adapters"), "--out", str(at / "out"), "--mark", "task-0-run-1"]
    result = CliRunner().invoke(main, [*arguments, "--merge-check", "copy,task-0-run-1"])
    assert result.exit_code == 3, result.output
    assert "8 adapters of" in result.stdout
    assert "2 clusters" in result.stdout
    assert "Merging" in result.stdout
    return at / "out"


def folder_survey(folder: Path) -> deltaw.Survey:
    return deltaw.Survey.load(folder)


def test_the_answer_counts_what_is_there(folder: Path):
    survey = deltaw.Survey.load(folder)
    said = " ".join(unmarked(f.text) for f in answer(survey))
    assert "every pair was compared exactly" in said
    assert "1 adapter could not be read" in said
    assert "2 clusters of two or more (the largest: 4 and 3)" in said
    assert "duplicate (2)" in said
    assert [f.value for f in five(survey)][:4] == ["8", "2", "2", "3"]
    assert repr(survey).startswith("<deltaw.Survey: 8 adapters of ")


def test_one_adapter_and_none_alike_have_sentences_too():
    survey = made_up(1)
    assert "no pair to compare" in unmarked(answer(survey)[0].text)
    alone = made_up(10)
    alone.tables.adapters["cluster"] = np.arange(1.0, 11.0)
    assert any("No two belong together" in f.text for f in answer(alone))


def test_the_page_holds_no_name_as_markup_and_asks_for_nothing(folder: Path):
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "<b>x" not in text
    assert "\\u003cb\\u003ex" in text
    assert not re.search(r"""(?:src|href)=["']?https?:""", text)
    assert json.loads(re.search(r'id="data">(.*?)</script>', text)[1])["mark"] >= 0  # type: ignore[index]


def test_reports_of_saved_surveys_are_rendered_again(folder: Path, tmp_path: Path):
    result = CliRunner().invoke(main, ["report", str(folder), "--out", str(tmp_path / "again.html")])
    assert result.exit_code == 0, result.output
    assert {p.name for p in (tmp_path / "figures").iterdir()} >= {"map.svg", "histograms.pdf", "similarity.png"}
    assert CliRunner().invoke(main, ["report", str(folder), "--markdown"]).exit_code == 2


def test_figures_are_axes_or_say_why_not():
    plot = made_up(30).plot
    assert len(plot.map((3, 4)).collections) == 8 + 1  # the clusters that have colours, and the others
    assert plot.histogram("rank").get_xlabel() == "rank"
    for call in (lambda: plot.map((0, 1)), lambda: plot.histogram("nothing"), plot.similarity, made_up(2).plot.map):
        with pytest.raises(OptionError):
            call()


@pytest.mark.parametrize("of", [folder_survey, lambda _: made_up(30), lambda _: made_up(300)])
def test_no_two_ticks_read_alike_or_touch(folder: Path, of: Callable[[Path], deltaw.Survey]):
    from tests.reports.test_ticks import told_apart

    plot = of(folder).plot
    draws = {name: getattr(plot, name) for name in READINGS}
    draws |= {name: partial(plot.histogram, name) for name in DRAWN}
    assert {"map", "histograms", "relative_change", "factor_balance"} <= told_apart(draws)


def test_the_map_says_what_it_holds():
    survey = made_up(30)
    assert findings.map_sentence(survey) == ""
    assert survey.plot.map().get_xlabel() == "axis 1"
    survey.about = replace(survey.about, axes=(0.3, 0.2, 0.1, 0.1))
    said = "Axes 1 and 2 hold 50\u202f% of the squared distances between the adapters."
    assert findings.map_sentence(survey) == said
    assert said in html(survey)
    assert findings.map_sentence(survey, (2, 3)).startswith("Axes 2 and 3 hold 30")
    assert survey.plot.map().get_xlabel() == "axis 1 (30\u202f%)"


def test_one_alone_has_no_number_of_a_cluster(folder: Path):
    survey = deltaw.Survey.load(folder)
    frame = survey.adapters()
    single = frame["cluster"].map(frame["cluster"].value_counts()) == 1
    frame.loc[frame["name"] == frame["name"].iloc[0], "cluster"] = 9.0
    assert findings.clustered(frame).tolist()[1:] == pytest.approx(
        frame["cluster"].where(~single).tolist()[1:], nan_ok=True
    )
    assert np.isnan(findings.clustered(frame).iloc[0])


def test_a_merge_is_in_the_page_and_its_numbers_are():
    survey = made_up(3)
    lies = (Interference("all", 7, 1.25, 0.5), Interference("mlp", 3, 1.0, 0.25))
    kept = tuple(MergeShare(n, m, "all", 0.875, 0.5) for n in ("a", "b") for m in ("sum", "ties"))
    survey.merge = Merge(("a", "b"), lies, kept)
    text = html(survey)
    for shown in ("Would a merge interfere?", "1.25", "88\u202f%", "TIES"):
        assert shown in text


def test_a_thousand_adapters_fit_into_a_page():
    survey = made_up(1000, layers=32)
    data = json.dumps(embedded(survey, survey.adapters(), ""))
    assert len(html(made_up(3)).encode()) + len(data.encode()) < 15e6


def test_what_is_flagged_comes_first_and_copies_before_all():
    survey = made_up(LISTED + 6, layers=1)
    survey.tables.adapters["flags"] = ["zero", *["duplicate"] * (LISTED + 5)]
    columns, rows, more = flagged(survey.adapters())
    assert [c.key for c in columns] == ["name", "why"]
    assert len(rows) == LISTED
    assert rows[0]["name"] == survey.adapters()["name"][1]
    assert more == 6


AT = "deltaw.survey.atlas.at(deltaw.data.rows.findIndex((row) => row[0] === 'copy'))"  # where it lies on the canvas


# ── in a browser ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.browser
def test_the_table_the_map_and_an_adapter_are_live(folder: Path, visit: Any, tmp_path: Path):
    page = visit(folder / "report.html").ready()
    assert page.locator("#adapters-table .tabulator-row").count() == 8
    with page.expect_download() as download:
        page.locator("#adapters-tools").get_by_role("button", name="Download CSV").click()
    download.value.save_as(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 8
    canvas = page.locator("#map-canvas canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = page.evaluate(AT)
    page.mouse.move(box["x"] + x, box["y"] + y)
    assert page.locator("#tip .tip-name").inner_text() in {"copy", "task-1-run-5"}  # they lie on one another
    page.mouse.click(box["x"] + x, box["y"] + y)
    page.wait_for_selector("#detail[open]")
    assert "Spectrum" not in page.locator("#detail").inner_text()  # one block has no curve
    page.locator("#detail .chip", has_text="task-1-run").first.click()
    assert page.locator("#detail-title").inner_text().startswith("task-1-run")
    page.get_by_role("button", name="Mark in all figures").click()
    page.keyboard.press("Escape")
    assert page.locator("#among-name").input_value().startswith("task-1-run")
    assert page.locator("#among-charts figure").count() >= 4


@pytest.mark.browser
def test_the_map_colours_zooms_and_turns(folder: Path, visit: Any):
    page = visit(folder / "report.html").ready()
    assert "1 (4)" in page.locator("#map-legend").inner_text()
    page.locator("#map-colour").select_option("relative_change")
    assert "1 (4)" not in page.locator("#map-legend").inner_text()
    before = page.evaluate(AT)
    page.get_by_role("button", name="Zoom in").click()
    zoomed = page.evaluate(AT)
    assert zoomed != before
    page.locator("#map-tools").get_by_role("button", name="All").click()
    assert page.evaluate(AT) == pytest.approx(before)
    page.locator("#map-axes").select_option("2")
    assert page.evaluate(AT) != pytest.approx(before)
    page.locator("#theme").click()
    page.wait_for_timeout(50)


@pytest.mark.browser
@pytest.mark.parametrize(
    ("cluster", "legend"),
    [
        ([1, 1, 2, 2], "1 (2)\n2 (2)"),
        ([*[1] * 2, *range(2, 12)], "1 (2)\nin no cluster"),
        ([*range(1, 9), *range(1, 9), 9], "\n".join([*(f"{i} (2)" for i in range(1, 8)), "others"])),
        (range(1, 13), "in no cluster"),
    ],
)
def test_the_legend_says_what_is_grey(cluster: Any, legend: str, visit: Any, tmp_path: Path):
    survey = made_up(len(cluster))
    survey.tables.adapters["cluster"] = [float(c) for c in cluster]
    page = visit(survey.report(tmp_path / "report.html")).ready()
    assert re.sub(r"\s*\n\s*", "\n", page.locator("#map-legend").inner_text().strip()) == legend


def test_the_title_says_whether_there_is_a_base():
    survey = made_up(3)
    assert "<h1><bdi>3 adapters of org/base</bdi></h1>" in html(survey)
    survey.about = replace(survey.about, base="")
    assert "<h1><bdi>3 adapters, without their base</bdi></h1>" in html(survey)


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1280)])
def test_nothing_is_wide_or_out_of_reach(folder: Path, visit: Any, scheme: str, width: int):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = visit(folder / "report.html", viewport={"width": width, "height": 800}, color_scheme=scheme).ready()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert faults(page) == []
    found = axe.Axe().run(page).response["violations"]
    serious = [v for v in found if v["impact"] in {"serious", "critical"}]
    assert [(v["id"], [n["html"][:200] for n in v["nodes"]][:3]) for v in serious] == []


@pytest.mark.browser
def test_the_cosines_fit_on_a_phone_and_all_of_it_on_paper(folder: Path, visit: Any):
    page = visit(folder / "report.html", viewport={"width": 390, "height": 800}).ready()
    canvas = page.locator("#f-similarity .canvas")
    assert canvas.evaluate("(e) => e.scrollWidth <= e.clientWidth")
    assert faults(page, paper=True) == []


@pytest.mark.browser
def test_without_javascript_and_of_two(visit: Any, tmp_path: Path, folder: Path):
    page = visit(folder / "report.html", java_script_enabled=False).page
    assert page.locator("#adapters noscript table").count() == 1
    assert page.locator("#map noscript svg").count() == 1
    two = visit(made_up(2).report(tmp_path / "two.html")).ready()
    assert two.locator("#map-canvas .absent").count() == 1
    assert two.locator("#merge").count() == 0  # nobody asked
    assert two.locator("#adapters-table .tabulator-row").count() == 2


@pytest.mark.browser
def test_five_thousand_are_usable(visit: Any, tmp_path: Path):
    page = visit(made_up(5000).report(tmp_path / "many.html")).ready()
    name = made_up(5000).adapters()["name"][4321]
    page.locator("#among-name").fill(name)
    page.locator("#among-name").press("Enter")
    page.locator("#among-tools").get_by_role("button", name="Open it").click()
    page.wait_for_selector("#detail[open]")
    assert page.locator("#detail-title").inner_text() == name
    assert "Spectrum by layer" in page.locator("#detail").inner_text()
    assert page.locator("#detail .chip", has_text="±").count() == 8


def test_hostile_names_reach_the_page_as_text():
    survey = made_up(len(HOSTILE))
    survey.tables.adapters["name"] = HOSTILE
    for column in ("nearest", "source", "base_name", "flags"):
        survey.tables.adapters[column] = HOSTILE
    of = dict(zip(made_up(len(HOSTILE)).adapters()["name"], HOSTILE, strict=True))
    for frame, columns in ((survey.tables.neighbours, ("name", "neighbour")), (survey.tables.spectra, ("name",))):
        for column in columns:
            frame[column] = frame[column].map(of)
    text = html(survey, HOSTILE[0])
    assert "<script>alert" not in text
    assert "<img src" not in text
