"""The sentences on data, case by case and at their thresholds, and the section of the report."""

import re

import pytest
import torch

import deltaw
from deltaw.activations.file import write_activations
from deltaw.activations.moments import Moments
from deltaw.reports.analysis_page import html
from deltaw.reports.on_data import sentences
from deltaw.reports.text import unmarked
from deltaw.results.on_data import OnDataSummary, summarize_on_data
from deltaw.results.rows import Rows

N = "\u202f"


def row(name: str, plain: float, on_data: float, source: float | None = None):
    out = {"name": name, "relative_change": plain, "relative_change_on_data": on_data, "rank_90": 3}
    if source is not None:
        out |= {"relative_change_on_source": source, "selectivity": on_data / source}
    return out


def said(*rows, files=("code", "books")) -> list[str]:
    found = summarize_on_data(Rows(tuple(rows)))
    return [unmarked(s.text).replace(N, " ") for s in sentences(found, files)]


def test_nothing_is_said_without_inputs():
    assert said({"name": "a", "relative_change": 0.1}) == []
    assert sentences(OnDataSummary(), ()) == []


def test_one_data_set():
    assert said(row("a", 0.02, 0.03), files=("code",)) == [
        "On the inputs of code the update changes the outputs of the typical matrix by 3 %; by size alone it would be "
        "2 %."
    ]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (0.1 / 1.101, "It is aimed at code: the typical matrix acts 1.1 times as much on code as on books."),
        (0.1 / 1.099, "It is aimed at neither: the typical matrix acts 1.1 times as much on code as on books."),
        (0.109, "It is aimed at neither: the typical matrix acts 0.917 times as much on code as on books."),
        (0.2, "It is aimed at books: the typical matrix acts 0.5 times as much on code as on books."),
    ],
)
def test_two_data_sets(source, words):
    assert said(row("a", 0.1, 0.1, source))[1] == words


def test_the_most_and_the_least_selective_are_named():
    found = said(row("a", 0.1, 0.1, 0.1), row("b", 0.1, 0.1, 0.05), row("c", 0.1, 0.1, 0.08))
    assert found[1].endswith("(1 in a to 2 in b).")


def test_quiet_and_loud_at_their_thresholds():
    found = said(row("quiet", 0.2, 0.1), row("usual", 0.2, 0.101), row("loud", 0.1, 0.2), row("not loud", 0.1, 0.199))
    assert found[1:] == [
        "1 matrix is quiet on code: quiet (10 %, by size 20 %).",
        "1 matrix is loud on code: loud (20 %, by size 10 %).",
    ]
    many = said(*(row(f"m{i}", 0.2, 0.01 * i) for i in range(1, 6)))
    assert many[1].startswith("5 matrices are quiet on code; furthest m1 (1 %, by size 20 %), m2 ")
    assert "m4" not in many[1]


def on_data(folder, sets=("code", "books")):
    """An analysis of three matrices on the inputs of data sets."""
    g = torch.Generator().manual_seed(0)
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)]
    base = {n: torch.randn(20, 12, generator=g) for n in names}
    ft = {n: w + 0.1 * torch.randn(20, 12, generator=g) for n, w in base.items()}
    files = []
    for k in sets:
        x = torch.randn(50, 12, generator=g, dtype=torch.float64)
        moments = Moments("moments", x.T @ x, 50, float(x.square().sum()))
        files.append(write_activations(folder / f"{k}.safetensors", dict.fromkeys(names, moments)))
    return deltaw.analyze(base, ft, activations=files)


def test_the_report_shows_both_beside_each_other(tmp_path):
    result = on_data(tmp_path)
    page = html(result)
    section = page[page.index('<section id="on-data">') :].split("</section>")[0]
    text = " ".join(re.sub("<[^>]+>", " ", section).split())
    assert "On the inputs of code the update changes the outputs" in text
    assert "relative change on data" in text
    assert text.count("Where it changes the outputs") >= 1
    assert text.count("On which of the two data sets it acts") >= 1
    assert result.summary.on_data.matrices == 3
    assert "On which of the two data sets it acts" not in html(on_data(tmp_path, ("code",)))
    assert '<section id="on-data">' not in html(on_data(tmp_path, ()))
