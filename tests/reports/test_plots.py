import struct
import threading

import numpy as np
import pytest
import torch

import deltaw
from deltaw.errors import OptionError
from deltaw.metrics.null import rank_90_null
from deltaw.reports import figures, style
from deltaw.reports.plots import AnalysisPlots, endings

FIGURES = ("heatmap", "spectra", "energy", "kept", "ranks", "precision", "change", "shrinkage")


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("columns", [1, 2])
def test_every_figure_is_as_wide_as_asked(full_analysis, name, columns):
    axes = getattr(full_analysis.plot, name)(columns=columns)
    assert figures.of(axes).get_figwidth() == style.COLUMN[columns]


def test_the_heatmap_shows_the_column(full_analysis):
    ax = full_analysis.plot.heatmap("stable_rank")
    shown = ax.collections[0].get_array().compressed()
    frame = full_analysis.to_pandas()
    assert sorted(shown) == sorted(frame["stable_rank"].dropna())


def test_a_spectrum_shows_every_singular_value_and_the_noise_edge(lora_analysis):
    name = "model.layers.1.mlp.up_proj.weight"
    ax = lora_analysis.plot.spectrum(name)
    line = ax.lines[0].get_xydata()
    spectrum = lora_analysis.spectrum(name)
    assert line[:, 1] == pytest.approx(spectrum.values[line[:, 0].astype(int) - 1])
    row = lora_analysis.to_pandas().set_index("name").loc[name]
    labels = {line.get_label(): line for line in ax.lines}
    assert labels["noise edge"].get_ydata()[0] == row["noise_edge"]
    with pytest.raises(KeyError, match="Did you mean"):
        lora_analysis.plot.spectrum("model.layers.1.mlp.up_proj.weigh")


def test_ranks_stand_beside_their_null(full_analysis):
    attention, _ = full_analysis.plot.ranks()
    solid = [line for line in attention.lines if line.get_linestyle() == "-"]
    dashed = [line for line in attention.lines if line.get_linestyle() == "--"]
    frame = full_analysis.to_pandas()
    q = frame[frame["module"] == "self_attn.q_proj"]
    assert solid[0].get_ydata().tolist() == q["rank_90"].tolist()
    assert dashed[0].get_ydata()[0] == pytest.approx(rank_90_null(32, 32))


def test_what_rounding_hides_is_not_drawn(kit):
    plots = AnalysisPlots(kit.make(kit.full(1e-4), dtype="bfloat16"))
    for name in ("ranks", "energy", "kept"):
        with pytest.raises(OptionError):
            getattr(plots, name)()
    ax = plots.heatmap("rank_90")
    assert ax.collections[0].get_array().mask.all()
    assert [t.get_text() for t in ax.figure.legends[0].get_texts()] == ["rounding hides it"]


def test_an_absent_column_is_refused(full_analysis):
    with pytest.raises(OptionError, match="no matrix of this analysis has a value of 'intruders'"):
        full_analysis.plot.heatmap("intruders")


def test_figures_are_drawn_in_threads(full_analysis):
    errors = []

    def work():
        try:
            figures.of(AnalysisPlots(full_analysis).heatmap()).canvas.draw()
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert errors == []


def test_figures_for_papers(full_analysis, tmp_path):
    from deltaw.reports import write_figures

    written = write_figures(full_analysis, tmp_path / "figures")
    names = {p.name for p in written}
    assert {"relative_change.svg", "relative_change.png", "spectra.svg", "energy.svg", "rank_90.png"} <= names
    assert all(p.stat().st_size > 2000 for p in written)
    assert {p.name for p in (tmp_path / "figures").iterdir()} == names
    first = (tmp_path / "figures" / "spectra.svg").read_bytes()
    assert b"<text" not in first  # outlines: no font is needed
    again = figures.save(figures.of(full_analysis.plot.spectra()), tmp_path / "again", "spectra")
    summary = (tmp_path / "figures" / "summary.png").read_bytes()
    assert struct.unpack(">II", summary[16:24]) == (1200, 630)
    assert [p.suffix for p in again] == [".svg", ".pdf", ".png"]
    assert again[0].read_bytes() == first
    assert again[1].read_bytes() == (tmp_path / "figures" / "spectra.pdf").read_bytes()


def test_figures_that_do_not_apply_are_left_out(kit, tmp_path):
    from deltaw.reports import write_figures

    assert write_figures(kit.make(kit.nothing), tmp_path) == []


def test_settings_of_the_caller_are_left_alone(full_analysis):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    figures.of(full_analysis.plot.energy()).canvas.draw()
    assert dict(mpl.rcParams) == before


def test_the_shortest_endings_that_differ():
    assert endings(["attention.self.query", "attention.self.key"]) == {
        "attention.self.query": "query",
        "attention.self.key": "key",
    }
    assert endings(["attention.output.dense", "output.dense", "intermediate.dense"]) == {
        "attention.output.dense": "attention.output.dense",
        "output.dense": "output.dense",
        "intermediate.dense": "intermediate.dense",
    }
    assert endings(["q"]) == {"q": "q"}


@pytest.mark.parametrize("name", ["$\\frac{a}$ _^", "模型", "a\nb", "\u202eabc", "x" * 400, "🧬"])
def test_labels_are_drawn_whatever_the_name(full_analysis, name):
    with style.settings():
        fig, axes = style.figure(2)
        axes[0, 0].set_title(style.label(name))
        fig.canvas.draw()  # a missing glyph or a broken formula would warn or fail
    assert len(style.label(name)) <= 34


def test_colours_have_contrast_on_both_pages():
    def luminance(colour):
        channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    def contrast(a, b):
        high, low = sorted((luminance(a), luminance(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for colour in {*style.KINDS.values(), *style.GROUPS}:
        assert contrast(colour, "#ffffff") >= 3
        assert contrast(style.DARK[colour], "#12161b") >= 3
    assert contrast(style.INK, "#ffffff") >= 7
    assert contrast(style.MUTED, "#ffffff") >= 4.5


def test_a_plain_stack_of_layers_has_a_report(tmp_path):
    """`0.weight`, `2.weight` of an nn.Sequential: no stack has a name."""
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4)).state_dict()
    tuned = {name: w + 0.1 * torch.randn_like(w) for name, w in base.items()}
    result = deltaw.analyze(base, tuned)
    axes = result.plot.heatmap("relative_change")
    ax = axes if hasattr(axes, "get_yticklabels") else axes.flat[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["weight"]
    assert result.report(tmp_path / "report.html").stat().st_size > 10_000


def test_a_line_of_many_experts_shows_some_of_them_and_says_so(monkeypatch):
    monkeypatch.setattr("deltaw.reports.plots.DOTS", 20)
    g = torch.Generator().manual_seed(0)
    base = {f"l.{i}.mlp.experts.{e}.w.weight": torch.ones(4, 4) for i in range(2) for e in range(30)}
    base["l.0.q.weight"] = torch.ones(4, 4)
    result = deltaw.analyze(base, {n: w + 0.01 * torch.randn(4, 4, generator=g) for n, w in base.items()})
    ax = result.plot.change()
    drawn = [points.get_offsets()[:, 0] for points in ax.collections[:-1]]
    assert sorted(map(len, drawn)) == [1, 20]
    changes = result.to_pandas().query("module != 'q'")["relative_change"]
    line = max(drawn, key=len)
    assert (line.min(), line.max()) == (changes.min(), changes.max())
    assert "20 of them, evenly by rank" in ax.get_xlabel()
