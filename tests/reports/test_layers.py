import numpy as np
import pytest

from deltaw.reports import heatmaps
from deltaw.reports.layers import OUTSIDE, Layers, slot
from deltaw.results.analysis import Analysis


@pytest.mark.parametrize(
    ("module", "part", "row"),
    [
        ("self_attn.q_proj", "", "self_attn.q_proj"),
        ("attn.c_attn", "q", "attn.c_attn[q]"),
        ("block_sparse_moe.experts.13.w1", "", "block_sparse_moe.experts.*.w1"),
        ("mlp.experts.gate_up_proj", "expert 7", "mlp.experts.gate_up_proj[expert *]"),
        ("layers.0.conv.3", "", "layers.0.conv.3"),
    ],
)
def test_experts_share_a_row(module, part, row):
    assert slot(module, part) == row


def test_matrices_vectors_and_what_changed(full_analysis, kit):
    layers = Layers(full_analysis)
    assert len(layers.matrices) == 30
    assert len(layers.vectors) == 9
    assert len(layers.changed) == 30
    assert layers.kinds == ["attention", "mlp", "embedding", "head"]
    still = Layers(kit.make(kit.nothing))
    assert len(still.matrices) == 30
    assert len(still.changed) == 0
    assert still.kinds == []


def test_the_grid_is_in_the_order_of_the_network(full_analysis):
    layers = Layers(full_analysis)
    grid = layers.grid(layers.matrices, layers.matrices["relative_change"])
    assert grid.columns == ["", "0", "1", "2", "3"]
    assert grid.labels[0] == "model.embed_tokens"
    assert grid.labels[1:5] == ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    assert grid.labels[-1] == "lm_head"
    assert (grid.groups[0].split(":")[1], grid.groups[-1].split(":")[1]) == (OUTSIDE, OUTSIDE)
    assert len(set(grid.groups)) == 3  # before, in and after the layers
    assert np.isfinite(grid.values).sum() == 30
    frame = layers.frame
    for (row, column), (member,) in grid.members.items():
        assert grid.values[row, column] == frame.at[member, "relative_change"]
        if grid.columns[column]:
            assert frame.at[member, "layer"] == float(grid.columns[column])


def test_a_cell_of_experts_is_their_median():
    rows = [
        {
            **{"name": f"m.0.experts.{e}.w", "stack": "m", "layer": 0, "module": f"experts.{e}.w", "kind": "mlp"},
            **{"rows": 2, "cols": 2, "ndim": 2, "route": "dense", "fro_norm": 1.0, "relative_change": value},
        }
        for e, value in enumerate([0.1, 0.4, 0.2, np.nan])
    ]
    layers = Layers(Analysis(rows))
    grid = layers.grid(layers.matrices, layers.matrices["relative_change"])
    assert grid.values.tolist() == [[0.2]]
    assert grid.members == {(0, 0): [0, 1, 2, 3]}


def test_two_stacks_have_their_own_rows():
    rows = [
        {
            **{"name": f"{s}.{i}.q", "stack": s, "layer": i, "module": "q", "kind": "attention", "route": "dense"},
            **{"rows": 2, "cols": 2, "ndim": 2, "fro_norm": 1.0, "relative_change": 0.1},
        }
        for s, n in (("encoder.block", 2), ("decoder.block", 3))
        for i in range(n)
    ]
    layers = Layers(Analysis(rows))
    grid = layers.grid(layers.matrices, layers.matrices["relative_change"])
    assert grid.groups == ["1:encoder.block", "2:decoder.block"]
    assert grid.labels == ["encoder.block.*.q", "decoder.block.*.q"]
    assert np.isfinite(grid.values).sum(1).tolist() == [2, 3]


def test_modules_of_several_stacks_are_told_apart():
    """The stages of a ResNet: `conv1` of one is not `conv1` of another, nor the one before all of them."""
    places = [("conv1", "", None), ("conv1", "layer1", 0), ("conv1", "layer1", 1), ("conv1", "layer2", 0)]
    rows = [
        {
            **{"name": f"{stack}.{layer}.{module}", "stack": stack, "layer": layer, "module": module, "kind": "conv"},
            **{"rows": 8, "cols": 8, "ndim": 4, "route": "dense", "fro_norm": 1.0, "base_fro_norm": 10.0 - i},
            **{"relative_change": 1 / (10.0 - i)},
        }
        for i, (module, stack, layer) in enumerate(places)
    ]
    analysis = Analysis(rows)
    assert list(Layers(analysis).frame["site"]) == ["conv1", "layer1.*.conv1", "layer1.*.conv1", "layer2.*.conv1"]
    modules = analysis.summary.most_changed_modules
    assert [(m.module, m.tensors) for m in modules] == [
        ("layer2.*.conv1", 1),
        ("layer1.*.conv1", 2),
        ("conv1", 1),
    ]


def test_one_stack_needs_no_name(full_analysis):
    frame = Layers(full_analysis).frame
    assert list(frame["site"]) == list(frame["slot"])


def test_what_changed_from_zero_is_not_drawn_as_unchanged():
    """A bias that was zero: there is no relative change, but it changed."""
    row = {"stack": "h", "layer": 0, "kind": "norm", "rows": 8, "cols": 1, "ndim": 1, "route": "vector"}
    rows = [
        row | {"name": "h.0.a", "module": "a", "fro_norm": 1.0, "base_fro_norm": 0.0},
        row | {"name": "h.0.b", "module": "b", "fro_norm": 1.0, "base_fro_norm": 2.0, "relative_change": 0.5},
        row | {"name": "h.0.c", "module": "c", "fro_norm": 0.0, "base_fro_norm": 0.0, "route": "unchanged"},
    ]
    heatmap = heatmaps.prepare(Layers(Analysis(rows)), "relative_change", vectors=True)
    assert heatmap.grid.labels == ["a", "b", "c"]
    assert heatmap.valueless[:, 0].tolist() == [True, False, False]
    assert [heatmap.state(i, 0) for i in (0, 2)] == ["changed from zero, so that there is no ratio", "unchanged"]
    figure = heatmaps.draw(heatmap).figure
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"unchanged", "changed from zero"}
