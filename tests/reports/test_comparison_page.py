"""The report of a comparison without a browser: its outline, its sentences, figures, sizes and hostile names."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import deltaw
from deltaw.errors import OptionError
from deltaw.reports import comparison as page
from deltaw.reports import comparison_findings as findings
from deltaw.reports import text
from deltaw.reports.text import unmarked, visible
from deltaw.types import Spectrum
from tests.reports.elements import Page


def seeded(change, seed):
    """The same base in every run: the change draws from its own generator."""
    g = np.random.default_rng(seed)
    return lambda rng, w0, kind: change(g, w0, kind)


def manifest_of(folder, arms, tokens=(1000, 2000), seeds=2):
    """Save analyses and write the manifest; learning falls and keeping rises from the first arm to the last."""
    rng = np.random.default_rng(0)
    lines = ['title = "Arms of a test"']
    for i, (group, method, analyse) in enumerate(arms):
        for seed in range(seeds):
            for step, t in enumerate(tokens, start=1):
                name = f"run{i}-{seed}-{t}"
                analyse(seed, step).save(folder / name, ["parquet"])
                learning = 0.3 * step / len(tokens) - 0.02 * i + rng.normal(0, 0.001)
                quoted = json.dumps(group, ensure_ascii=False)
                lines += ["[[runs]]", f'name = "{name}"', f"group = {quoted}", f'method = "{method}"']
                lines += [f"seed = {seed}", f"tokens = {t}", f'results = "{name}"', "[runs.scores]"]
                lines += [f"learning = {learning}", f"retention = {0.6 - 0.3 * learning + rng.normal(0, 0.001)}"]
    path = folder / "runs.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def arms(kit):
    """Full fine-tuning, two ranks of merged LoRA, and decay."""

    def analyse(change, offset):
        return lambda seed, step: kit.make(seeded(change(step), 100 * offset + seed), layers=2)

    return [
        ("full", "full", analyse(lambda step: kit.full(0.01 * step), 1)),
        ("LoRA r=4", "lora", analyse(lambda step: kit.lora(4, 0.01 * step), 2)),
        ("LoRA r=8", "lora", analyse(lambda step: kit.lora(8, 0.01 * step), 3)),
        ("full + decay", "full", analyse(lambda step: kit.decay(0.01 * step), 4)),
    ]


@pytest.fixture(scope="session")
def compared(arms, tmp_path_factory):
    return deltaw.compare(manifest_of(tmp_path_factory.mktemp("compared"), arms))


@pytest.fixture(scope="session")
def with_weights(tmp_path_factory):
    """Three runs of one base on disk, so that their updates can be compared with each other."""
    folder = tmp_path_factory.mktemp("weights")
    g = torch.Generator().manual_seed(0)
    names = [f"model.layers.{i}.{m}.weight" for i in range(3) for m in ("self_attn.q_proj", "mlp.up_proj")]
    base = {n: torch.randn(24, 32, generator=g) for n in names}
    save_file(base, folder / "base.safetensors")
    lines = ['base = "base.safetensors"']
    for run, rank in (("full", 24), ("LoRA a", 2), ("LoRA b", 2)):
        thin = {n: torch.randn(24, rank, generator=g) @ torch.randn(rank, 32, generator=g) for n in names}
        save_file({n: w + 0.01 * thin[n] for n, w in base.items()}, folder / f"{run}.safetensors")
        lines += ["[[runs]]", f'name = "{run}"', f'group = "{run}"', f'checkpoint = "{run}.safetensors"']
    (folder / "runs.toml").write_text("\n".join(lines))
    return deltaw.compare(folder / "runs.toml")


@pytest.fixture(scope="session")
def compared_html(compared):
    return page.html(compared)


def test_the_outline(compared_html):
    found = Page(compared_html)
    sections = [a["id"] for tag, a in found.elements if tag == "section"]
    assert sections == [i for i, _ in page.CONTENTS]
    assert "Arms of a test" in found.text["bdi"]
    figures = [a["id"] for tag, a in found.elements if tag == "figure"]
    assert figures == [
        f"f-{n}" for n in ("pareto", "trajectories", "fingerprints", "spectra", "ranks", "claims", "similarity")
    ]
    ids = [a["id"] for _, a in found.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert not [a for _, a in found.elements if "style" in a or any(k.startswith("on") for k in a)]


def test_every_figure_is_there_or_says_why(compared):
    pictures = page.pictures(compared)
    for name, picture in pictures.items():
        assert picture.svg is not None or picture.reason, name
        assert picture.svg is None or picture.reading, name
    assert [n for n, p in pictures.items() if p.svg is None] == ["similarity"]
    assert "needs the checkpoints" in pictures["similarity"].reason


def test_the_answer(compared):
    said = [unmarked(f.text) for f in findings.answer(compared)]
    assert said[0].startswith("Against full: LoRA r=8 learned less (")
    assert "at equal learning the difference is open (" in said[0]
    assert "full + decay has one seed on a side" in said[0]  # its seeds are copies
    assert said[1].startswith("16 runs of one base in 4 groups; full is compared with LoRA r=4, LoRA r=8 and full +")
    assert "of their norm with a median rank_90 of" in said[2]
    assert all(f.rule for f in findings.answer(compared))


def test_sentences_follow_the_intervals(compared):
    prints = compared.fingerprints().set_index("group")
    text = unmarked(findings.answer(compared)[0].text)
    assert text.startswith("Against full: ")
    for group in ("LoRA r=4", "LoRA r=8", "full + decay"):
        clear = prints.loc[group, "learning_p"] < 0.05
        assert clear == (prints.loc[group, "learning_effect_high"] < 0)
        assert (f"{group} learned less" in text) == clear


def test_common_shrinkage_is_read_off(compared):
    assert "In full + decay all matrices that could show it shrank" in unmarked(
        findings.readings(compared)["fingerprints"]
    )


def test_verdicts_and_their_rules_are_on_the_page(compared, compared_html):
    claims = compared.claims()
    assert compared_html.count('class="verdict"') == len(claims)
    for verdict, n in claims["verdict"].value_counts().items():
        assert compared_html.count(f'class="verdict-{verdict.replace(" ", "-")}"') == n
    assert compared_html.count("Claimed by") == len(claims)


def test_one_seed_is_said_first(arms, tmp_path):
    c = deltaw.compare(manifest_of(tmp_path, arms[:2], tokens=(1000,), seeds=1))
    lead, said, update = (unmarked(f.text) for f in findings.answer(c)[:3])
    assert "one seed per group" in said
    assert said.endswith("intervals cover layers only.")
    assert lead.startswith("No verdict: every comparison has one seed on a side. The points: LoRA r=4 against full −")
    assert not any(word in lead for word in ("learned", "kept"))
    assert "one seed on a side: nothing is known of others" in update
    html = page.html(c)
    assert "intervals cover layers only" in html
    assert "*</td>" not in html
    assert set(c.claims()["verdict"]) == {"cannot tell"}


def test_scores_only(tmp_path):
    """The published numbers: no weights at all, and a complete page."""
    text = 'title = "Published"\n'
    for name, method, x, y in (("full", "full", 0.263, 0.545), ("LoRA r=16", "lora", 0.162, 0.635)):
        text += f'[[runs]]\nname = "{name}"\nmethod = "{method}"\n[runs.scores]\nlearning = {x}\nretention = {y}\n'
    path = tmp_path / "runs.toml"
    path.write_text(text, encoding="utf-8")
    c = deltaw.compare(path)
    html = page.html(c)
    assert "2 runs" in html
    assert html.count("No figure:") == 4  # there are points, and a fingerprint of scores
    ax = c.plot.pareto()
    points = {tuple(p) for collection in ax.collections for p in np.asarray(collection.get_offsets())}
    assert points == {(0.263, 0.545), (0.162, 0.635)}
    with pytest.raises(OptionError, match="no run has a spectrum"):
        c.plot.spectra()


def test_one_run(full_analysis):
    html = page.html(deltaw.compare({"only": full_analysis}))
    assert "No contrast: two groups" in html
    assert "single run" in html


def test_plots_return_axes(compared):
    assert compared.plot.pareto().figure is not None
    assert len(compared.plot.spectra()) == 3
    assert compared.plot.fingerprints().shape[1] == 4
    assert len(compared.plot.trajectories()) == 4


@pytest.mark.parametrize("name", [*findings.READINGS])
def test_no_two_ticks_read_alike_or_touch(compared, with_weights, name):
    from tests.reports.test_ticks import told_apart

    assert told_apart({str(i): getattr(c.plot, name) for i, c in enumerate((compared, with_weights))})


def test_overlaps_have_numbers_and_every_run_its_own(with_weights):
    axes = with_weights.plot.similarity()
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["full  1", "LoRA a  2", "LoRA b  3"]
    assert [t.get_text() for t in axes[0].get_xticklabels()] == ["1", "2", "3"]
    assert all("-" not in t.get_text() for ax in axes for t in ax.texts)


def test_a_group_keeps_its_colour(compared):
    looks = compared.plot.looks
    assert list(looks) == ["full", "LoRA r=4", "LoRA r=8", "full + decay"]
    assert len({look.colour for look in looks.values()}) == 4
    ax = compared.plot.spectra()[0]
    assert [line.get_color() for line in ax.get_lines()][:4] == [look.colour for look in looks.values()]


def test_figures_for_papers(compared, tmp_path):
    files = page.write_figures(compared, tmp_path)
    assert {f.name for f in files} >= {"pareto.svg", "pareto.png", "spectra.svg", "fingerprints.png", "ranks.svg"}
    assert all(f.stat().st_size > 1000 for f in files)


def test_hostile_names_are_text(kit, full_analysis):
    named = dict.fromkeys((n for n in kit.hostile if n.strip()), full_analysis)
    html = page.html(deltaw.compare(named))
    found = Page(html)
    assert [a for tag, a in found.elements if tag == "img"] == []
    assert html.count("<script") == 1 + 3 + 2  # the data, three libraries, two scripts
    assert "alert(1)" in html  # shown as text
    assert "\u202e" not in html
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])
    assert {r[data["columns"].index("group_a")] for r in data["rows"]} <= set(map(visible, named))


def test_sixty_runs_are_legible_and_small(full_analysis):
    """Many groups: every one is named in every legend, in a colour and marker of its own."""
    c = deltaw.compare({f"arm {i}": [full_analysis] * 5 for i in range(12)})
    html = page.html(c)
    assert len(html.encode()) < 4e6
    assert len({(look.colour, look.marker) for look in c.plot.looks.values()}) == 12
    figure = c.plot.spectra()[0].figure
    assert {t.get_text() for t in figure.legends[0].get_texts()} >= {f"arm {i}" for i in range(12)}


def test_save_writes_report_and_tables(compared, tmp_path):
    out = compared.save(tmp_path / "out")
    names = {p.name for p in out.iterdir()}
    assert names >= {"report.html", "runs.csv", "layers.csv", "contrasts.csv", "claims.csv", "fronts.csv"}


def test_noise_has_no_rank(kit):
    """A merged update below its rounding noise gets no rank in the fingerprint."""
    noisy = kit.make(kit.lora(4, 1e-4), dtype="bfloat16", hidden=64)
    assert set(noisy.to_pandas()["resolution"]) & {"noisy", "below_precision"}
    prints = deltaw.compare({"a": noisy}).fingerprints().iloc[0]
    assert np.isfinite(prints["relative_change"])
    frame = noisy.to_pandas()
    clear = frame.loc[frame["fro_norm"] > 0, "resolution"].eq("resolved").any()  # what stood still has no rank to tell
    assert np.isfinite(prints["rank_90"]) == clear


def test_low_rank_curves_end(kit):
    from deltaw.comparison.mean_spectra import mean_spectra

    s = np.r_[np.ones(4), np.zeros(28)]
    frame = kit.make(kit.nothing, layers=1).to_pandas().set_index("name")
    name = next(n for n in frame.index if "q_proj" in n)
    curve = mean_spectra(frame, {name: Spectrum(s, 32, 32)})["attention"]
    assert np.isfinite(curve.sigma[curve.indices <= 4]).all()
    assert np.isnan(curve.sigma[curve.indices > 4]).all()
    assert curve.sigma[0] == pytest.approx(0.5)


def test_intervals_have_one_number_of_digits():
    assert text.aligned((-0.066, -0.12, -0.0119), signed=True) == ["−0.07", "−0.12", "−0.01"]
    assert text.aligned((0.0718, 0.0645, 0.0791)) == ["0.072", "0.065", "0.079"]
    assert text.aligned((0.5, 0.47, 0.53), signed=True) == ["+0.50", "+0.47", "+0.53"]
    assert text.aligned((0.5, 0.4701, 0.5299)) == ["0.500", "0.470", "0.530"]  # half the width begins with a 2
    assert text.aligned((18.0, 18.0, 18.0)) == ["18", "18", "18"]
    assert text.aligned((12345.0, 12000.0, 12800.0)) == ["12\u202f345", "12\u202f000", "12\u202f800"]


def test_what_the_medians_do_not_decide_comes_last():
    frame = pd.DataFrame(
        {
            "median_ratio": [1.5, 4.0, np.nan, np.nan, 0.0],
            "median_difference": [1.0, 3.0, 0.2, 0.2, -1.0],
            "median_a": [3.0, 4.0, 0.1, 0.1, 0.0],
            "median_b": [2.0, 1.0, -0.1, -0.1, 0.0],
            "difference_low": [0.5, 2.0, -0.1, 0.1, -2.0],
            "difference_high": [1.5, 4.0, 0.5, 0.3, 1.0],
        }
    )
    assert list(page.largest_first(frame).index) == [3, 1, 0, 2, 4]
