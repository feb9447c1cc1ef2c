"""Every axis of every figure: no two ticks read alike, and there are enough of them to read a number."""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deltaw
from benchmarks.calibration.quantised import KINDS, NAME, fp8_rows, weights
from deltaw.errors import OptionError
from deltaw.reports import figures, ramp, style
from deltaw.reports.figures import figures_of
from deltaw.results.analysis import Analysis
from tests.reports.test_comparison_page import seeded
from tests.reports.test_on_data import on_data


def axis_labels(figure: Any) -> list[tuple[str, list[str]]]:
    """The visible tick labels of each axis."""
    figure.draw_without_rendering()
    out = []
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            shown = [
                label.get_text()
                for at, label in zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=False)
                if low - 1e-9 * abs(low) <= at <= high + 1e-9 * abs(high) and label.get_visible()
            ]
            out.append((axis.get_label_text(), [t for t in shown if t]))
    return out


def overlapping(figure: Any) -> list[tuple[str, str]]:
    """Labels of one axis that touch each other, as they are drawn."""
    figure.draw_without_rendering()
    renderer = figure._get_renderer()
    out = []
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            shown = [
                label
                for at, label in zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=False)
                if low <= at <= high and label.get_visible() and label.get_text()
            ]
            boxes = [(label.get_text(), label.get_window_extent(renderer)) for label in shown]
            boxes.sort(key=lambda item: (item[1].x0, item[1].y0))
            out += [(a, b) for (a, first), (b, second) in pairwise(boxes) if first.overlaps(second)]
    return out


def kinds(kit: Any) -> dict[str, Analysis]:
    near = lambda rng, w0, kind: 0.02 * w0 * (1 + 1e-7 * rng.normal())  # noqa: E731
    return {
        "full": kit.make(kit.full()),
        "full of one part in a million": kit.make(kit.full(1e-6)),
        "large": kit.make(kit.full(3.0)),
        "merged": kit.make(kit.lora(), hidden=64, dtype="bfloat16"),
        "near-equal": kit.make(near),
        "decay": kit.make(kit.decay()),
        "unrelated": kit.make(kit.unrelated),
        "one layer": kit.make(kit.full(), layers=1),
        "80 layers": kit.make(kit.full(), layers=80, hidden=8, vocabulary=8),
        "experts": kit.many(128, experts=16),
    }


def told_apart(draws: Mapping[str, Callable[[], Any]]) -> set[str]:
    """The figures that apply, each with ticks that differ and do not touch."""
    drawn = set()
    for name, draw in draws.items():
        try:
            figure = figures.of(draw())
        except OptionError:
            continue
        for label, texts in axis_labels(figure):
            assert len(set(texts)) == len(texts), (name, label, texts)
            if len(texts) > 1:
                drawn.add(name)
        assert not overlapping(figure), name
    return drawn


@pytest.mark.parametrize("kind", range(10))
def test_no_two_ticks_read_alike(kit: Any, kind: int):
    assert len(told_apart(figures_of(list(kinds(kit).values())[kind]))) > 4


def test_no_two_ticks_read_alike_on_data(tmp_path: Path):
    analysis = on_data(tmp_path)
    assert {"relative_change_on_data", "selectivity"} <= told_apart(figures_of(analysis))


def test_no_two_ticks_read_alike_where_a_side_is_quantised():
    w = weights(KINDS[0], 1)
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(2)]
    ft = {}
    for name in names:
        ft |= {key.replace(NAME, name): value for key, value in fp8_rows(w).items()}
    analysis = deltaw.analyze(dict.fromkeys(names, w), ft)
    assert analysis.summary.quantised
    assert {"relative_change", "rounding"} <= told_apart(figures_of(analysis))


def test_no_two_ticks_read_alike_on_a_narrow_logarithmic_axis():
    for low, high in ((0.00534, 0.00571), (1.28, 1.38), (0.9, 12), (1e-9, 3e-3), (4000, 4001)):
        for share in (False, True):
            fig, axes = style.figure(2)
            axes[0, 0].plot([0, 1], [low, high])
            style.log_scale(axes[0, 0].yaxis, share=share)
            (texts,) = [t for label, t in axis_labels(fig)[1:]]
            assert len(set(texts)) == len(texts) > 1, (low, high, texts)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 2.5, ["0.0", "0.5", "1.0", "1.5", "2.0", "2.5"]),
        (0, 1.2, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0", "1.2"]),
        (0.4, 0.401, ["0.4000", "0.4002", "0.4004", "0.4006", "0.4008", "0.4010"]),
        (0, 3000, ["0", "500", "1 000", "1 500", "2 000", "2 500", "3 000"]),
    ],
)
def test_the_digits_follow_the_step(low: float, high: float, expected: list[str]):
    fig, axes = style.figure(2)
    axes[0, 0].set_xlim(low, high)
    axes[0, 0].set_xticks(np.linspace(low, high, len(expected)))
    style.ticks(axes[0, 0].xaxis)
    texts = next(texts for _, texts in axis_labels(fig))
    assert [t.replace("\u202f", " ") for t in texts] == expected


def test_nearly_equal_numbers_get_room():
    fig, axes = style.figure(2)
    values = [0.02, 0.02 * (1 + 1e-9)]
    axes[0, 0].scatter(values, [0, 1])
    style.limits(axes[0, 0].xaxis, values)
    assert axes[0, 0].get_xlim() == pytest.approx((0.018, 0.022))
    axes[0, 0].set_xlim(0, 1)
    style.limits(axes[0, 0].xaxis, [0.1, 0.9])
    assert axes[0, 0].get_xlim() == (0, 1)
    fig.clear()


@pytest.mark.parametrize(
    ("least", "found"), [(0.2, 1), (1, 1), (1.1, 2), (2, 2), (2.01, 5), (9, 10), (11, 20), (1000, 1000)]
)
def test_steps_are_round(least: float, found: int):
    assert style.step(least) == found


def test_numbers_on_cells_are_legible_on_both_pages():
    for step, light in enumerate(ramp.LEVELS):
        text = ramp.text_colour(step)
        assert ramp.contrast(light, text) >= 4.5
        assert ramp.contrast(ramp.DARK[light], ramp.DARK[text]) >= 4.5
    light = [ramp.luminance(c) for c in ramp.LEVELS]
    assert light == sorted(light, reverse=True)  # dark is much …
    dark = [ramp.luminance(ramp.DARK[c]) for c in ramp.LEVELS]
    assert dark == sorted(dark)  # … and light is, on a dark page


def test_names_at_lines_are_legible_on_both_pages():
    for shades in style.KIND_SHADES.values():
        assert all(ramp.contrast(c, "#ffffff") >= 4.5 for c in shades)
        assert all(ramp.contrast(style.DARK[c], "#12161b") >= 4.5 for c in shades)
        assert len(set(shades)) == len(shades)


def test_the_order_is_the_networks(kit: Any):
    from deltaw.reports import heatmaps
    from deltaw.reports.layers import Layers

    prepared = heatmaps.prepare(Layers(kit.make(kit.full())), "relative_change")
    assert prepared is not None
    assert prepared.grid.labels == [
        "model.embed_tokens",
        *(f"self_attn.{p}_proj" for p in "qkvo"),
        *(f"mlp.{p}_proj" for p in ("gate", "up", "down")),
        "lm_head",
    ]


@pytest.mark.parametrize(
    "names",
    [
        ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"],
        ["attn.c_attn", "attn.c_proj"],
        ["self_attention.query_key_value", "self_attention.dense"],
        ["attention.wq", "attention.wk", "attention.wv", "attention.wo"],
        ["attn.qkv", "attn.proj"],
        ["SelfAttention.q", "SelfAttention.k", "SelfAttention.v", "SelfAttention.o"],
        ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"],
    ],
)
def test_attention_reads_q_k_v_o(names: list[str]):
    from deltaw.reports.order import place

    assert [place(n, "attention") for n in names] == sorted({place(n, "attention") for n in names})


@pytest.mark.parametrize(
    "names",
    [
        ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
        ["mlp.c_fc", "mlp.c_proj"],
        ["feed_forward.w1", "feed_forward.w3", "feed_forward.w2"],
        ["intermediate.dense", "output.dense"],
        ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
        ["mlp.fc1", "mlp.fc2"],
        ["mlp.gate", "mlp.experts.*.gate_proj", "mlp.experts.*.up_proj", "mlp.experts.*.down_proj"],
    ],
)
def test_mlp_reads_gate_up_down(names: list[str]):
    from deltaw.reports.order import place

    assert [place(n, "mlp") for n in names] == sorted({place(n, "mlp") for n in names})


def test_what_is_outside_of_layers_has_a_readable_cell(kit: Any):
    from deltaw.reports import heatmaps
    from deltaw.reports.layers import Layers

    analysis = kit.make(kit.full(), layers=80, hidden=8, vocabulary=8)
    ax = analysis.plot.heatmap()
    prepared = heatmaps.prepare(Layers(analysis), "relative_change")
    assert prepared is not None
    figure = figures.of(ax)
    figure.draw_without_rendering()
    (left, _), (right, _) = ax.transData.transform([(0, 0), (heatmaps._edges(prepared.grid, 5.1)[0][1], 0)])
    assert (right - left) / figure.dpi >= 0.3
    plain = ax.transData.transform([(10, 0), (11, 0)])
    assert right - left > 3 * (plain[1][0] - plain[0][0])
    assert math.isfinite(right)


def test_experts_have_their_own_map(kit: Any):
    ax = kit.many(64, experts=16).plot.experts()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("expert", "layer")
    with pytest.raises(OptionError, match="several experts"):
        kit.make(kit.full()).plot.experts()


def test_a_misspelt_metric_suggests_the_near_ones(full_analysis: Analysis):
    with pytest.raises(OptionError, match="Did you mean 'effective_rank'"):
        full_analysis.plot.heatmap("efective_rank")
    with pytest.raises(OptionError, match="Did you mean 'rank_90'"):
        full_analysis.plot.ranks("rank90")


def test_no_share_above_all_of_it_is_marked(kit: Any):
    """The axis ends behind 100 %, so that a dot there is whole."""
    runs = {name: [kit.make(seeded(change, 1))] for name, change in (("full", kit.full()), ("LoRA", kit.lora()))}
    axes = deltaw.compare(runs).plot.fingerprints()
    panel = next(ax for ax in axes.flat if ax.get_title(loc="left") == "energy at rank 16")
    assert panel.get_xlim()[1] > 1
    assert 0.9 < panel.get_xticks().max() <= 1
