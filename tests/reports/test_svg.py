import re
from xml.etree import ElementTree

from deltaw.reports import heatmaps, style, svg
from deltaw.reports.layers import Layers


def drawn(analysis, identifier="h", cell=None):
    prepared = heatmaps.prepare(Layers(analysis), "rank_90")
    return prepared, svg.inline(heatmaps.draw(prepared).figure, identifier, "A <title>", 'said "so" & done', cell)


def parse(text):
    return ElementTree.fromstring(text)


def test_it_is_described_and_escaped(full_analysis):
    root = parse(drawn(full_analysis)[1])
    assert root.attrib["role"] == "img"
    names = root.attrib["aria-labelledby"].split()
    assert [root.find(f".//*[@id='{n}']").text for n in names] == ["A <title>", 'said "so" & done']


def test_ids_have_the_prefix_and_every_reference_resolves(full_analysis):
    text = drawn(full_analysis, "first")[1]
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert all(i.startswith("first-") for i in ids)
    used = re.findall(r'(?:href="|url\()#([^")]+)', text)
    assert used
    assert set(used) <= set(ids)


def test_nothing_that_the_policy_forbids_is_left(full_analysis):
    text = drawn(full_analysis)[1]
    assert "style=" not in text
    assert "<style" not in text
    assert "xmlns" not in text
    assert "<metadata" not in text


def test_known_colours_follow_the_theme(full_analysis):
    text = drawn(full_analysis)[1]
    assert f"var(--c{style.INK[1:]},{style.INK})" in text
    assert f'"{style.INK}"' not in text


def test_every_cell_links_to_its_matrix(full_analysis):
    prepared, _ = drawn(full_analysis)
    cells = {
        at: {"href": f"#row-{prepared.grid.members[r, c][0]}", "aria-label": f"{r},{c}", "title": "<&>"}
        for at, (r, c) in heatmaps.drawn_cells(prepared.grid).items()
        if (r, c) in prepared.grid.members
    }
    root = parse(drawn(full_analysis, cell=cells.get)[1])
    links = root.findall(".//a")
    assert len(links) == 30
    assert {a.attrib["href"] for a in links} == {f"#row-{m[0]}" for m in prepared.grid.members.values()}
    assert all(a.find("path").attrib["fill"].startswith("var(--c") for a in links)
    assert all(a.find("path/title").text == "<&>" for a in links)
    assert root.attrib["role"] == "group"
    # a cell lies where its row and column say
    left = {
        a.attrib["aria-label"]: [float(x) for x in re.findall(r"-?[\d.]+", a.find("path").attrib["d"])[:2]]
        for a in links
    }
    assert left["1,1"][0] < left["1,2"][0]
    assert left["1,1"][1] < left["2,1"][1]


def test_cells_without_a_colour_can_still_be_clicked(lora_analysis):
    prepared, _ = drawn(lora_analysis)
    at = {cell: number for number, cell in heatmaps.drawn_cells(prepared.grid).items()}
    cells = {at[cell]: {"href": f"#row-{m[0]}"} for cell, m in prepared.grid.members.items()}
    root = parse(drawn(lora_analysis, cell=cells.get)[1])
    fills = [a.find("path").attrib["fill"] for a in root.findall(".//a")]
    assert len(fills) == 30
    assert fills.count("transparent") == 2  # the embedding and the head did not change


def test_the_same_figure_gives_the_same_bytes(full_analysis):
    assert drawn(full_analysis)[1] == drawn(full_analysis)[1]
