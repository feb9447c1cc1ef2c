"""The structure of the page, without a browser: its outline, its sentences, hostile names, and inputs of every kind."""

import dataclasses
import json
import re

import numpy as np
import pytest

import deltaw
from deltaw.reports import analysis_page, write_analysis
from deltaw.results.analysis import Analysis
from deltaw.results.sources import Source
from deltaw.types import Interval, Reason, Skipped, Spectrum
from tests.reports.elements import Page


def data_of(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


@pytest.fixture(scope="module")
def html(full_report):
    return full_report.read_text(encoding="utf-8")


def test_the_outline(html):
    page = Page(html)
    headings = [h.strip() for h in page.text["h2"]][1:]  # the first is the picture's
    assert page.text["bdi"][:2] == ["models/base", "models/tuned"]
    assert "<title>models/base → models/tuned: spread</title>" in html
    assert headings == [heading for _, heading in analysis_page.CONTENTS[1:]]
    assert [a["id"] for tag, a in page.elements if tag == "section"] == [i for i, _ in analysis_page.CONTENTS]
    assert [h.strip() for h in page.text["h3"]] == [
        *("Relative change by module", "Norms and biases"),
        *("Update against rounding", "Shrinkage along the base"),
        *("Rank against noise", "rank_90 by layer", "Singular values by module kind"),
        *("Cumulative energy by module kind", "Effective rank", "Energy kept against adapter rank"),
        *(
            "What rank would have been enough?",
            "Inputs",
            "Reproduce",
            "Cite",
            "Run",
            "Skipped",
            "Rules of the sentences",
            "Glossary",
        ),
    ]


def test_the_first_screen(html):
    first = html[html.index('<section id="answer">') : html.index('<section id="changed">')]
    assert len(re.findall(r'<p class="level-', first)) == 3
    assert len(re.findall(r"<dt>", first)) == 5
    assert first.count("<figure") == 1
    text = re.sub(r"<[^>]+>", "", first)
    assert "30 of 30 matrices changed, all by about 2\u202f% of their norm" in text
    assert "Not low-rank" in text
    assert "LoraConfig(" in first
    assert "parameters" in text
    assert ">spread</span>" in first


def test_every_figure_has_a_reading_and_a_how_to(html):
    for figure in re.findall(r"<figure.*?</figure>", html, re.DOTALL):
        assert '<p class="reading">' in figure
        assert "<summary>How to read this</summary>" in figure
        assert re.search(r'<svg [^>]*role="(img|group)"[^>]*aria-labelledby=', figure)


def test_ids_are_unique_and_links_resolve(html):
    page = Page(html)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for tag, a in page.elements if tag == "a" and a.get("href", "").startswith("#")}
    assert targets <= set(ids)
    assert {a["popovertarget"] for _, a in page.elements if "popovertarget" in a} <= set(ids)


def test_nothing_is_fetched_and_nothing_inline_escapes_the_policy(html):
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in {"img", "iframe", "object", "embed", "base", "form"}
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)


def test_without_scripts_every_number_is_there(html, full_analysis):
    table = re.search(r"<noscript>(.*?)</noscript>", html, re.DOTALL)[1]
    frame = full_analysis.to_pandas()
    assert re.findall(r'<th scope="col">(.*?)</th>', table) == list(frame.columns)
    rows = re.findall(r'<tr id="row-(\d+)">(.*?)</tr>', table)
    assert [int(i) for i, _ in rows] == list(frame.index)
    cells = [re.sub("<.*?>", "", c) for c in re.findall(r"<td>(.*?)</td>", rows[1][1])]
    shown = dict(zip(frame.columns, cells, strict=True))
    assert float(shown["rank_90_null"]) == pytest.approx(frame.at[1, "rank_90_null"], rel=1e-5)
    assert shown["rank_90"] == str(int(frame.at[1, "rank_90"]))
    assert shown["name"] == frame.at[1, "name"]
    assert shown["adapter_rank"] == ""


def test_the_data_holds_the_table_and_the_spectra(html, full_analysis):
    data = data_of(html)
    frame = full_analysis.to_pandas()
    assert data["columns"] == list(frame.columns)
    assert len(data["rows"]) == len(frame)
    column = data["columns"].index("relative_change")
    assert [r[column] for r in data["rows"]] == pytest.approx(frame["relative_change"].tolist(), rel=1e-5)
    spectrum = data["spectra"]["1"]
    values = full_analysis.spectrum(frame.at[1, "name"]).values
    assert spectrum["s"] == pytest.approx(values[np.array(data["indices"][str(spectrum["k"])]) - 1], rel=1e-3)
    assert set(data["sections"]) == {
        "identity",
        "size",
        "rank",
        "energy",
        "precision",
        "regularisation",
        "adapter",
        "alignment",
        "on data",
    }
    assert sorted(c for members in data["sections"].values() for c in members) == sorted(frame.columns)


def test_provenance_and_skipped(html):
    end = html[html.index('<section id="measured">') : html.index("</main>")]
    text = re.sub(r"<[^>]+>", " ", end.replace("<wbr>", ""))
    for expected in (
        "models/base",
        "models/tuned",
        "12.3\u202fMB",
        "3.2\u202fs",
        "model.rotary.inv_freq",
        "only in the base",
        "int64",
        "2.11.0",
    ):
        assert expected in text
    for name in ("effective_rank", "rank_90_null", "noise_edge", "shrinkage"):
        assert f'id="g-{name}"' in html


# ── hostile names ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def hostile(kit):
    names = kit.hostile
    analysis = kit.make(
        kit.full(), layers=1, hidden=8, vocabulary=8, skipped=tuple(Skipped(n, Reason.FAILED, n, n) for n in names)
    )
    rows = [dict(r) for r in analysis.rows]
    spectra = {}
    for i, row in enumerate(rows):
        old, bad = row["name"], names[i % len(names)]
        row |= {"name": f"{i}.{bad}", "stack": bad, "module": f"{bad}.{i}", "part": bad if i % 2 else ""}
        if old in analysis.spectra:
            spectra[row["name"] + (f"[{bad}]" if i % 2 else "")] = analysis.spectra[old]
    side = Source(path=names[0], revision=names[1], format=names[5], nbytes=1, tensors=1)
    return dataclasses.replace(
        analysis, rows=rows, spectra=spectra, base=side, ft=side, options={names[0]: names[3]}, notes=names,
        versions={names[0]: names[1]}, device=names[0],
    )  # fmt: skip


def test_hostile_names_are_text(hostile, kit):
    html = analysis_page.html(hostile)
    page = Page(html)
    scripts = [a for tag, a in page.elements if tag == "script"]
    assert len(scripts) == 1 + len(analysis_page.page.LIBRARIES) + 2  # the data, the libraries, ours
    assert not [tag for tag, _ in page.elements if tag in {"img", "b"}]
    assert not [a for _, a in page.elements if any(n.startswith("on") for n in a)]
    assert "\u202e" not in html.replace(json.dumps("\u202e"), "").split('<script type="application/json"')[0]
    text = " ".join(t for texts in page.text.values() for t in texts)
    assert "</script><script>alert(1)</script>" in text
    assert "{{ 7*7 }}" in text
    assert "a\\nb\\tc" in text
    data = data_of(html)
    assert data["rows"][0][0] == f"0.{kit.hostile[0]}"  # the CSV has the true names
    assert data["labels"]["3"].startswith("3.a\\nb\\tc")


# ── inputs of every kind ──────────────────────────────────────────────────────────────────────────────────────────


def outline(analysis):
    html = analysis_page.html(analysis)
    assert [h.strip() for h in Page(html).text["h2"]][1:] == [heading for _, heading in analysis_page.CONTENTS[1:]]
    return html


def test_no_matrices_at_all():
    html = outline(Analysis([], skipped=[Skipped("a", Reason.SHAPE_MISMATCH, "2 and 3")]))
    assert "No tensor of the two checkpoints has a row in this analysis." in html
    assert html.count('<p class="absent">') >= 3
    assert "figures do not apply here" in html
    assert "no matrix changed" in html


@pytest.mark.parametrize("what", ["nothing", "unrelated"])
def test_extremes(kit, what):
    outline(kit.make(getattr(kit, what), layers=1, hidden=8))


def test_only_vectors(kit):
    analysis = kit.make(kit.full())
    rows = [r for r in analysis.rows if r["ndim"] == 1]
    html = outline(dataclasses.replace(analysis, rows=rows, spectra={}))
    assert "Only " in html
    assert 'id="vectors-' in html


def test_one_matrix(kit):
    analysis = kit.make(kit.full())
    html = outline(dataclasses.replace(analysis, rows=[analysis.rows[1]]))
    assert "The <strong>one</strong> matrix changed by" in html


def test_every_metric_may_be_missing(full_analysis):
    identity = {"name", "stack", "layer", "module", "kind", "part", "rows", "cols", "ndim", "route", "method"}
    rows = [{k: v for k, v in r.items() if k in identity} for r in full_analysis.rows]
    outline(dataclasses.replace(full_analysis, rows=rows, spectra={}))


def test_fast_mode_shows_intervals(full_analysis):
    rows, spectra = [], {}
    for row in full_analysis.rows:
        row = dict(row)
        if row["ndim"] > 1:
            row |= {
                "method": "estimate",
                "effective_rank_low": row["effective_rank"] * 0.97,
                "effective_rank_high": row["effective_rank"] * 1.03,
            }
            full = full_analysis.spectra[row["name"]]
            spectra[row["name"]] = Spectrum(
                full.values[:6],
                full.rows,
                full.cols,
                "estimate",
                row["fro_norm"] ** 2,
                {"effective_rank": Interval(3, 2, 4)},
            )
        rows.append(row)
    html = outline(dataclasses.replace(full_analysis, rows=rows, spectra=spectra))
    data = data_of(html)
    assert data["sections"]["rank"][1:4] == ["effective_rank", "effective_rank_low", "effective_rank_high"]
    assert "takes about" in html
    assert len(data["spectra"]["1"]["s"]) == 6
    assert data["spectra"]["1"]["e"][-1] < 1


def test_saved_results_give_the_same_report(html, full_analysis, tmp_path):
    full_analysis.save(tmp_path)
    assert analysis_page.html(deltaw.load(tmp_path)) == html


def test_it_is_written_where_asked(full_analysis, tmp_path):
    path = write_analysis(full_analysis, tmp_path / "sub" / "report.html")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


# ── sizes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("matrices", "experts", "megabytes"), [(224, 0, 4), (2000, 64, 15)])
def test_the_file_stays_small(kit, tmp_path, matrices, experts, megabytes):
    path = write_analysis(kit.many(matrices, experts), tmp_path / "report.html")
    assert path.stat().st_size <= megabytes * 1e6


def test_without_a_base_the_picture_shows_the_size(full_analysis):
    needs_base = {"base_fro_norm", "relative_change", "shrinkage", "cosine_to_base", "norm_growth", "decay_estimate"}
    rows = [{k: v for k, v in r.items() if k not in needs_base} for r in full_analysis.rows]
    html = outline(dataclasses.replace(full_analysis, rows=rows, base=None))
    first = html[html.index('<section id="answer">') : html.index('<section id="changed">')]
    assert "only the base&#39;s weights could tell" in first
    assert "needs the base&#39;s weights" in first
    assert 'aria-label="model.layers.0.self_attn.q_proj.weight: fro_norm ' in first


def test_twenty_thousand_tensors_make_one_small_page(kit, tmp_path):
    path = write_analysis(kit.many(20_000, experts=64), tmp_path / "report.html")
    assert path.stat().st_size <= 15e6
    html = path.read_text(encoding="utf-8")
    assert "18\u202f000 more are in" in html
    led_to = {int(n) for n in re.findall(r'data-m="(\d+)"', html)}
    assert led_to <= set(json.loads(re.search(r'"numbers":(\[[^]]*\])', html)[1]))  # every cell has its row


def test_many_modules_and_layers_share_cells(kit):
    from deltaw.reports.layers import COLUMNS, ROWS, Layers

    rows = [
        {
            **{"name": f"l.{i}.m{j}.weight", "stack": "l", "layer": i, "module": f"m{j}", "kind": "mlp", "part": ""},
            **{"rows": 2, "cols": 2, "ndim": 2, "route": "dense", "fro_norm": 1.0, "relative_change": 0.1},
        }
        for i in range(400)
        for j in range(ROWS + 1)
    ]
    layers = Layers(Analysis(rows))
    grid = layers.grid(layers.matrices, layers.matrices["relative_change"])
    assert grid.labels == ["m*"]
    assert len(grid.columns) <= COLUMNS
    assert sum(map(len, grid.members.values())) == len(rows)


@pytest.mark.parametrize("change", ["decay", "unrelated"])
def test_nothing_is_offered_to_a_shrink_or_an_unrelated_pair(kit, change):
    made = kit.decay(0.02) if change == "decay" else kit.unrelated
    html = analysis_page.html(kit.make(made))
    assert "LoraConfig" not in html
    assert "rank_pattern" not in html
    section = html[html.index('<section id="adapter">') : html.index('<section id="wrong">')]
    assert "Nothing: " in section
    assert "<svg" not in section
    first = html[html.index('<section id="answer">') : html.index('<section id="changed">')]
    assert "nothing here for an adapter" in first


def test_unlike_embeddings_are_listed_and_not_averaged():
    from deltaw.reports import tables
    from deltaw.reports.layers import Layers

    def row(name: str, rows: int, change: float) -> dict:
        return {
            **{
                "name": f"{name}.weight",
                "stack": "",
                "module": name,
                "kind": "embedding",
                "part": "",
                "route": "dense",
            },
            **{"rows": rows, "cols": 8, "ndim": 2, "fro_norm": 1.0, "relative_change": change},
        }

    unlike = [row("word", 100, 0.01), row("position", 20, 0.02), row("type", 2, 0.5)]
    _, listed = tables.by_kind(Layers(Analysis(unlike)), ["relative_change"])
    assert [(r["kind"], r["count"]) for r in listed] == [("word", "1"), ("position", "1"), ("type", "1")]
    alike = [row("a", 100, 0.01), row("b", 100, 0.03)]
    _, pooled = tables.by_kind(Layers(Analysis(alike)), ["relative_change"])
    assert [(r["kind"], r["count"], r["relative_change"]) for r in pooled] == [
        ("embedding", "2 of 2", "2\N{NARROW NO-BREAK SPACE}%")
    ]
