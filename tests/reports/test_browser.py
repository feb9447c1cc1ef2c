"""The report in a real browser. Every visit must leave the console silent and ask for nothing (`visit` checks it)."""

import csv
import re

import pytest

from tests.reports.laid_out import faults

pytestmark = pytest.mark.browser

CELL = "figure[data-live] a[data-m]"


def test_it_loads(full_report, visit):
    page = visit(full_report).ready()
    assert page.title() == "models/base → models/tuned: spread"
    assert page.locator("#layers-table .tabulator-row").count() == 20
    assert page.locator(CELL).count() == 30 * 3 + 9


def expect_rows(page, count):
    from playwright.sync_api import expect

    expect(page.locator("#layers-table .tabulator-row")).to_have_count(count)


def downloaded(page, path):
    """The rows of the CSV that the button gives."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    download.value.save_as(path)
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def column(page, field):
    return page.locator(f'#layers-table .tabulator-row .tabulator-cell[tabulator-field="{field}"]').all_inner_texts()


def test_the_table_sorts(full_report, full_analysis, visit):
    page = visit(full_report).ready()
    page.locator('.tabulator-col[tabulator-field="effective_rank"]').first  # noqa: B018  (exists, though hidden)
    page.locator('.tabulator-col[tabulator-field="rank_90"] .tabulator-col-title').click()
    shown = [int(x) for x in column(page, "rank_90")]
    expected = sorted(full_analysis.to_pandas()["rank_90"].dropna().astype(int), reverse=True)
    assert shown == expected[:20]


def test_the_table_filters_and_pages(full_report, visit):
    page = visit(full_report).ready()
    page.locator('.tabulator-col[tabulator-field="name"] input').press_sequentially("mlp.")
    expect_rows(page, 12)
    assert all(".mlp." in name for name in column(page, "name"))
    page.locator('.tabulator-col[tabulator-field="layer"] input').press_sequentially("1..2")
    expect_rows(page, 6)
    page.get_by_role("button", name="Clear filters").click()
    expect_rows(page, 20)
    first = column(page, "name")[0]
    page.get_by_role("button", name="Next Page").click()
    expect_rows(page, 10)
    assert first not in column(page, "name")


def test_the_table_begins_with_what_changed_most(kit, visit, tmp_path):
    def change(rng, w0, kind):
        return kit.full(0.01 + 0.05 * rng.random())(rng, w0, kind)

    analysis = kit.make(change)
    page = visit(analysis.report(tmp_path / "report.html")).ready()
    frame = analysis.to_pandas()
    most = frame[frame["ndim"] == 2].nlargest(20, "relative_change")
    assert column(page, "name") == most["name"].tolist()
    assert column(page, "relative_change")[0] == f"{100 * most['relative_change'].iloc[0]:.3g}\u202f%"
    assert int(column(page, "params")[0].replace("\u202f", "")) == most["rows"].iloc[0] * most["cols"].iloc[0]


def test_norms_and_biases_are_shown_when_asked_for(full_report, visit):
    page = visit(full_report).ready()
    page.locator('.tabulator-col[tabulator-field="name"] input').press_sequentially("norm")
    expect_rows(page, 0)
    page.get_by_role("button", name="Norms and biases (9)").click()
    expect_rows(page, 9)
    page.get_by_role("button", name="Norms and biases (9)").click()
    expect_rows(page, 0)


def test_a_link_opens_a_matrix_and_can_be_copied(full_report, visit):
    name = "model.layers.2.mlp.up_proj.weight"
    v = visit(full_report, permissions=["clipboard-read", "clipboard-write"])
    page = v.ready()
    page.evaluate(f"location.hash = '#m={name}'")
    page.wait_for_selector("#detail[open] dt")
    assert page.locator("#detail h2").inner_text() == name
    page.get_by_role("button", name="Copy name").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == name
    page.get_by_role("button", name="Copy link").click()
    page.wait_for_function("navigator.clipboard.readText().then(t => t.startsWith('file:'))")
    link = page.evaluate("navigator.clipboard.readText()")
    page.keyboard.press("Escape")
    assert "#m=" not in page.evaluate("location.href")
    page.goto(link)
    page.wait_for_selector("#detail[open] dt")
    assert page.locator("#detail h2").inner_text() == name
    v.requests.clear()
    v.requests.append(full_report.as_uri())


def test_the_dots_are_on_the_curve(full_report, visit):
    page = visit(full_report).open_row(1)
    heights = page.evaluate(
        r"""() => {
          const svg = document.querySelectorAll('#detail svg.chart')[1];
          const blue = '[stroke="var(--c0072b2)"]';
          const line = [...svg.querySelectorAll(`path${blue}, g${blue} path`)].at(-1);
          const points = [...line.getAttribute('d').matchAll(/([\d.]+),([\d.]+)/g)].map(m => [+m[1], +m[2]]);
          const dots = [...svg.querySelectorAll('circle')].map(c => [+c.getAttribute('cx'), +c.getAttribute('cy')]);
          return dots.map(([x, y]) => {
            const at = Math.max(1, points.findIndex(p => p[0] >= x - 1e-6));
            const [a, b] = [points[at - 1], points[at]];
            return Math.abs(y - (a[1] + (b[1] - a[1]) * (x - a[0]) / (b[0] - a[0])));
          });
        }"""
    )
    assert len(heights) == 4
    assert max(heights) < 0.5


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("> 10", [12, 16]),
        ("<=10", [4, 10]),
        ("10", [10]),
        ("4..12", [4, 10, 12]),
        ("= 16", [16]),
        ("", [4, 10, 12, 16, None]),
    ],
)
def test_numeric_filters(full_report, visit, query, kept):
    page = visit(full_report).ready()
    assert page.evaluate("q => [4, 10, 12, 16, null].filter(v => deltaw.compare(q, v))", query) == kept


def test_columns_can_be_chosen(full_report, visit):
    page = visit(full_report).ready()
    page.get_by_label("Columns").select_option("precision")
    page.wait_for_selector('.tabulator-cell[tabulator-field="noise_edge"]')
    titles = page.locator("#layers-table .tabulator-col:visible .tabulator-col-title").all_inner_texts()
    assert titles[:5] == ["name", "kind", "layer", "rounding_noise", "noise_edge"]


def test_the_table_downloads_as_csv(full_report, full_analysis, visit, tmp_path):
    page = visit(full_report).ready()
    page.get_by_role("button", name="Norms and biases").click()
    page.locator('.tabulator-col[tabulator-field="kind"] input').press_sequentially("norm")
    expect_rows(page, 9)
    rows = downloaded(page, tmp_path / "layers.csv")
    frame = full_analysis.to_pandas()
    expected = frame[frame["kind"] == "norm"].sort_values("name")
    rows.sort(key=lambda r: r["name"])
    assert list(rows[0]) == list(frame.columns)
    assert [r["name"] for r in rows] == expected["name"].tolist()
    assert [float(r["relative_change"]) for r in rows] == pytest.approx(expected["relative_change"].tolist(), rel=1e-5)
    assert rows[0]["rank_90"] == ""


def test_a_cell_shows_its_numbers_and_opens_its_matrix(lora_report, lora_analysis, visit):
    page = visit(lora_report).ready()
    cell = page.locator(CELL).nth(2)  # after the embedding and layer 0
    cell.hover()
    assert page.locator("#tip").is_visible()
    name = page.locator("#tip .tip-name").inner_text()
    cell.click()
    dialog = page.locator("#detail")
    assert dialog.locator("h2").inner_text() == name
    assert dialog.locator("svg.chart").count() == 2
    row = lora_analysis.to_pandas().set_index("name").loc[name]
    text = dialog.inner_text()
    assert re.search(rf"signal_rank\s+{int(row['signal_rank'])}\b", text)
    assert "noise edge" in dialog.locator("svg.chart").first.inner_html()
    assert (
        dialog.locator('svg.chart path[stroke="var(--c0072b2)"], svg.chart g[stroke="var(--c0072b2)"] path').count()
        >= 2
    )
    dialog.get_by_role("button", name="layer 2 →").click()
    assert dialog.locator("h2").inner_text() == name.replace(".1.", ".2.")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_all_columns_of_a_matrix_are_shown(full_report, full_analysis, visit):
    page = visit(full_report).open_row(1)
    row = full_analysis.to_pandas().set_index("name", drop=False).loc[page.locator("#detail h2").inner_text()]
    known = [c for c, v in row.items() if v == v and v != ""]
    names = page.locator("#detail .columns dt").all_inner_texts()
    assert sorted(names) == sorted(known)


def test_a_vector_and_an_unchanged_matrix_have_no_spectrum(lora_report, visit):
    page = visit(lora_report).ready()
    page.evaluate("location.hash = '#m=lm_head.weight'")
    page.wait_for_selector("#detail[open] dt")
    assert "the same on both sides" in page.locator("#detail").inner_text()
    page.keyboard.press("Escape")


def test_with_the_keyboard_only(full_report, visit):
    page = visit(full_report).ready()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.hasAttribute('data-m')"):
            break
    first = page.evaluate("document.activeElement.dataset.c")
    page.keyboard.press("ArrowRight")
    assert int(page.evaluate("document.activeElement.dataset.c")) == int(first) + 1
    assert page.locator("#tip").is_visible()
    page.keyboard.press("Enter")
    assert page.locator("#detail").is_visible()
    assert page.evaluate("document.activeElement.id") == "detail-title"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.hasAttribute('data-m')")  # where it was
    row = page.locator("#layers-table .tabulator-row").first
    row.focus()
    page.keyboard.press("Enter")
    assert page.locator("#detail").is_visible()


def test_the_glossary_opens_in_place(full_report, visit):
    page = visit(full_report).ready()
    page.locator("#answer button.term").first.click()
    card = page.locator("#p-relative_change")
    assert card.is_visible()
    assert "‖ΔW‖F / ‖W0‖F" in card.inner_text()
    page.keyboard.press("Escape")
    assert not card.is_visible()


def test_the_rank_pattern_can_be_copied(lora_report, visit):
    page = visit(lora_report, permissions=["clipboard-read", "clipboard-write"]).ready()
    page.get_by_role("button", name="99 %").click()
    assert page.locator("#pattern-99").is_visible()
    assert not page.locator("#pattern-90").is_visible()
    assert page.evaluate("JSON.parse(document.getElementById('pattern-99').textContent)")["self_attn.q_proj"] == 4


def test_light_and_dark(full_report, visit):
    def page_colour(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    def ink(page):
        return page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")

    light, dark = visit(full_report).ready(), visit(full_report, color_scheme="dark").ready()
    assert page_colour(light) == "rgb(255, 255, 255)"
    assert page_colour(dark) == "rgb(18, 22, 27)"
    assert ink(light) != ink(dark)
    dark.get_by_role("button", name="Switch between light and dark").click()
    assert page_colour(dark) == "rgb(255, 255, 255)"
    assert ink(light) == ink(dark)


def test_on_a_phone_nothing_but_figures_and_tables_scrolls_sideways(full_report, visit):
    page = visit(full_report, viewport={"width": 360, "height": 740}).ready()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 15
    page.locator(CELL).first.click()
    assert page.evaluate("document.getElementById('detail').scrollWidth") <= 360


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_cut_off_or_covered(full_report, visit, width):
    assert faults(visit(full_report, viewport={"width": width, "height": 800}).ready()) == []


def test_all_of_it_is_on_paper(full_report, visit):
    assert faults(visit(full_report).ready(), paper=True) == []


def test_it_prints(full_report, visit):
    v = visit(full_report, color_scheme="dark")
    pdf = v.ready().pdf(format="A4", print_background=True)
    assert pdf.startswith(b"%PDF")
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert 5 <= pages <= 30
    v.page.emulate_media(media="print")
    assert v.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert v.page.locator(".print-only tbody tr").first.is_visible()
    assert not v.page.locator("#layers-table").is_visible()
    cut = v.page.evaluate(
        "[...document.querySelectorAll('figure')].filter(f => f.getBoundingClientRect().height > 1000).length"
    )
    assert cut == 0  # every figure fits on a page of A4, 1009 px high at these margins


def test_without_javascript_every_figure_and_number_is_there(full_report, full_analysis, visit):
    v = visit(full_report, java_script_enabled=False)
    assert v.page.locator("figure svg").count() == 11
    assert v.page.locator(".everything tbody tr").count() == len(full_analysis.rows)
    assert v.page.locator(".everything").is_visible()
    for hidden in ("#layers-table", "#theme", "button[data-copy]"):
        assert not v.page.locator(hidden).first.is_visible()
    for share in (90, 95, 99):
        assert v.page.locator(f"#pattern-{share}").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(lora_report, visit, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = visit(lora_report, color_scheme=scheme).ready()

    def check():
        found = axe.Axe().run(page).response["violations"]
        assert [
            (v["id"], [n["html"][:200] for n in v["nodes"]][:3])
            for v in found
            if v["impact"] in {"serious", "critical"}
        ] == []

    check()
    page.locator(CELL).first.click()
    check()


def test_hostile_names_in_a_browser(kit, visit, tmp_path):
    names = iter(kit.hostile * 9)
    analysis = kit.make(kit.full(), layers=2, hidden=8, vocabulary=8, rename=lambda name: f"{name}.{next(names)}")
    v = visit(analysis.report(tmp_path / "report.html"))
    page = v.ready()
    shown = column(page, "name")
    assert any("</script><script>alert(1)</script>" in name for name in shown)
    v.open_row(1)
    assert "onerror=alert(1)" in page.locator("#detail h2").inner_text()
    assert page.locator("img").count() == 0
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Norms and biases").click()
    rows = downloaded(page, tmp_path / "layers.csv")
    assert sorted(r["name"] for r in rows) == sorted(analysis.to_pandas()["name"])


def test_the_page_of_224_matrices_is_small(kit, visit, tmp_path):
    """What a browser has to lay out before a reader can click: the table draws one page of its rows."""
    page = visit(kit.many(224).report(tmp_path / "report.html")).ready()
    assert page.evaluate("document.getElementsByTagName('*').length") < 15_000


def test_2000_matrices_are_usable(kit, visit, tmp_path):
    page = visit(kit.many(2000, experts=64).report(tmp_path / "report.html")).ready()
    page.locator('.tabulator-col[tabulator-field="layer"] input').press_sequentially("31")
    expect_rows(page, 2000 - 31 * 64)
    page.locator(CELL).nth(3).click()
    dialog = page.locator("#detail")
    assert dialog.locator("svg.chart").count() == 2
    assert dialog.get_by_text("Same cell").is_visible()
    dialog.locator(".chips", has_text="Same cell").get_by_role("button").first.click()
    assert ".3.mlp.experts." in dialog.locator("h2").inner_text()
