"""The report of a comparison in a real browser: quiet, sortable, filterable, downloadable, dark, narrow, on paper."""

import csv
import math

import numpy as np
import pytest

import deltaw
from tests.reports.laid_out import faults

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def comparison(kit):
    def run(change, seed):
        g = np.random.default_rng(seed)
        return kit.make(lambda rng, w0, kind: change(g, w0, kind))

    return deltaw.compare(
        {
            "full": [run(kit.full(), s) for s in range(2)],
            "LoRA <b>r=4</b>": [run(kit.lora(4), 10 + s) for s in range(2)],
            "decay": [run(kit.decay(), 20 + s) for s in range(2)],
        }
    )


@pytest.fixture(scope="module")
def report(comparison, tmp_path_factory):
    return comparison.report(tmp_path_factory.mktemp("comparison") / "report.html")


def test_it_loads_and_the_contrasts_are_live(report, comparison, visit, tmp_path):
    page = visit(report).ready()
    assert page.title() == "6 runs of one base, compared"
    assert page.locator("#contrasts-table .tabulator-row").count() == 20
    page.locator('#contrasts-table .tabulator-col[tabulator-field="metric"] input').press_sequentially("rank_90_ratio")
    from playwright.sync_api import expect

    expect(page.locator("#contrasts-table .tabulator-row")).to_have_count(3)
    with page.expect_download() as download:
        page.locator("#contrasts-tools").get_by_role("button", name="Download CSV").click()
    download.value.save_as(tmp_path / "c.csv")
    with (tmp_path / "c.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    frame = comparison.contrasts()
    expected = frame[frame["metric"] == "rank_90_ratio"]
    assert list(rows[0]) == list(frame.columns)
    largest_first = expected.loc[expected["median_ratio"].map(math.log).abs().sort_values(ascending=False).index]
    assert [r["group_b"] for r in rows] == largest_first["group_b"].tolist()
    assert [float(r["median_ratio"]) for r in rows] == pytest.approx(largest_first["median_ratio"].tolist(), rel=1e-5)


def test_every_run_is_live(report, comparison, visit, tmp_path):
    page = visit(report).ready()
    assert page.locator("#runs-table .tabulator-row").count() == len(comparison.runs())
    page.locator('#runs-table .tabulator-col[tabulator-field="relative_change"] .tabulator-col-title').click()
    first = page.locator("#runs-table .tabulator-row").first
    most = comparison.runs().sort_values("relative_change", ascending=False).iloc[0]
    assert first.locator('[tabulator-field="run"]').inner_text() == most["run"]
    with page.expect_download() as download:
        page.locator("#runs-tools").get_by_role("button", name="Download CSV").click()
    download.value.save_as(tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(newline="", encoding="utf-8") as file:
        assert next(r["run"] for r in csv.DictReader(file)) == most["run"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(report, visit, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = visit(report, color_scheme=scheme).ready()
    found = axe.Axe().run(page).response["violations"]
    serious = [v for v in found if v["impact"] in {"serious", "critical"}]
    assert [(v["id"], [n["html"][:200] for n in v["nodes"]][:3]) for v in serious] == []


def test_values_and_effects_are_a_choice(report, visit):
    page = visit(report).ready()
    button = page.get_by_role("button", name="Against the reference")
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert page.get_by_text("Median ratio to the reference over shared matrices").first.is_visible()


def test_a_term_explains_itself(report, visit):
    page = visit(report).ready()
    page.locator("#rank .term").first.click()
    assert page.locator("#p-rank_90").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_page(report, visit, width, scheme):
    page = visit(report, viewport={"width": width, "height": 800}, color_scheme=scheme).ready()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_cut_off_or_covered(report, visit, width):
    assert faults(visit(report, viewport={"width": width, "height": 800}).ready()) == []


def test_all_of_it_is_on_paper(report, visit):
    assert faults(visit(report).ready(), paper=True) == []


def test_without_javascript_the_tables_are_there(report, visit):
    page = visit(report, java_script_enabled=False).page
    assert page.locator("#contrasts noscript table").count() == 1
    assert page.locator("#claims .verdict").count() >= 10
    assert page.locator("figure svg").count() >= 3


def test_it_prints(report, visit, tmp_path):
    page = visit(report).ready()
    pdf = page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert len(pdf) > 20_000
