"""Is a common decay seen where there is one, and not where there is none? On whole analyses, and on rows alone."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

import deltaw
from benchmarks.calibration.decay import DECAYS, NO_DECAY, TRAININGS, found, learnt, pair, trained
from deltaw.results.decay import summarize_decay


def weights(count=6, rows=96, cols=64, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {f"model.layers.{i}.mlp.up_proj.weight": 0.02 * torch.randn(rows, cols, generator=g) for i in range(count)}


def decay_of(base, ft):
    return deltaw.analyze(base, ft, device="cpu", jobs=1).summary.decay


@pytest.mark.parametrize("name", NO_DECAY)
def test_none_where_there_is_none(name):
    case = pair(NO_DECAY[name])
    analysis = deltaw.analyze(case.base, case.ft, device="cpu", jobs=1)
    decay = analysis.summary.decay
    assert not decay.visible
    assert decay.evidence == "none"
    assert math.isnan(decay.value)
    assert math.isnan(decay.low)
    assert analysis.summary.verdict != "decay_only"
    assert "uniform" not in set(analysis.to_pandas()["shrinkage_kind"]) or name == "each tensor by its own factor"


@pytest.mark.parametrize("name", DECAYS)
def test_a_decay_and_how_large_it_is(name):
    made, case = DECAYS[name], DECAYS[name].case()
    decay = found(case)
    assert decay.visible
    size = 1.5 * made.learnt + made.decay
    assert abs(decay.value - made.decay) <= max(0.05 * made.decay, 3 * size / math.sqrt(192 * 128))
    assert decay.low <= made.decay <= decay.high
    assert decay.evidence == "tensors"
    assert (decay.agree, decay.exempt) == (decay.informative, 0)
    assert not decay.like_mean


@pytest.mark.parametrize("name", TRAININGS)
def test_decay_of_an_optimizer(name):
    case = trained(TRAININGS[name])
    decay = found(case)
    assert decay.visible
    assert decay.low <= case.decay <= decay.high
    assert decay.value == pytest.approx(case.decay, rel=0.1)
    assert not found(trained(TRAININGS[name], decay=False)).visible


def test_what_learning_gave_back_is_not_taken_for_less_decay():
    """SGD restores what mattered: ⟨ΔW, W0⟩ alone would read .95 of the decay."""
    case = trained(TRAININGS["SGD, longer"])
    frame = deltaw.analyze(case.base, case.ft, device="cpu", jobs=1).to_pandas()
    assert frame["shrinkage"].median() < 0.97 * case.decay
    assert found(case).value == pytest.approx(case.decay, rel=0.01)


def test_a_merged_oft_adapter():
    peft = pytest.importorskip("peft")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(64, 64, bias=False) for _ in range(4))

        def forward(self, x):
            return sum(layer(x) for layer in self.layers)

    torch.manual_seed(0)
    model = Model()
    base = {name: w.detach().clone() for name, w in model.state_dict().items()}
    config = peft.OFTConfig(oft_block_size=32, target_modules=["0", "1", "2", "3"], use_cayley_neumann=False)
    tuned = peft.get_peft_model(model, config)
    for name, w in tuned.named_parameters():
        if "oft_" in name and w.requires_grad:
            torch.nn.init.normal_(w, std=0.02)
    merged = tuned.merge_and_unload().state_dict()
    analysis = deltaw.analyze(base, {name: merged[name] for name in base}, device="cpu", jobs=1)
    frame = analysis.to_pandas()
    assert frame["norm_growth"].abs().max() < 1e-6
    assert (frame["shrinkage_z"] > 5).all()
    assert set(frame["shrinkage_kind"]) == {"turn"}
    assert not analysis.summary.decay.visible
    assert (analysis.summary.decay.instead, analysis.summary.decay.instead_tensors) == ("turn", 4)


def test_a_mean_with_unrelated_weights_is_a_shrink_and_is_told_from_decay():
    case = pair(lambda w, _, g: 0.9 * w + 0.1 * w.std() * torch.randn(w.shape, generator=g, dtype=torch.float64))
    decay = found(case)
    assert decay.visible
    assert decay.value == pytest.approx(0.1, rel=0.02)
    assert decay.like_mean


def test_exempt_tensors_are_named():
    base = weights(10)
    exempt = [list(base)[i] for i in (3, 7, 8)]
    g = torch.Generator().manual_seed(1)
    ft = {k: w * (1 if k in exempt else 0.99) + 2e-5 * torch.randn(w.shape, generator=g) for k, w in base.items()}
    decay = decay_of(base, ft)
    assert decay.value == pytest.approx(0.01, rel=0.01)
    assert (decay.informative, decay.agree, decay.exempt) == (10, 7, 3)
    assert list(decay.exempt_tensors) == exempt


def test_two_in_five_are_not_most():
    base = weights(5)
    ft = {k: w * (0.99 if i < 2 else 1.0) + 1e-5 for i, (k, w) in enumerate(base.items())}
    assert not decay_of(base, ft).visible


def test_one_matrix_may_tell_alone():
    base = weights(1)
    decay = decay_of(base, {k: 0.98 * w for k, w in base.items()})
    assert (decay.visible, decay.agree, decay.informative) == (True, 1, 1)
    assert decay.value == pytest.approx(0.02, rel=1e-5)


@pytest.mark.parametrize(
    ("module", "embedding"), [("model.embed_tokens.weight", True), ("model.layers.0.mlp.up_proj.weight", False)]
)
def test_rows_never_seen_answer_alone(module, embedding):
    g = torch.Generator().manual_seed(0)
    w0 = torch.randn(500, 64, generator=g)
    w = w0 * (1 - 3e-4)
    w[:200] += 0.1 * torch.randn(200, 64, generator=g)
    decay = decay_of({module: w0}, {module: w})
    assert decay.visible
    assert decay.evidence == "rows"
    assert decay.rows_tensors == 1
    assert decay.rows_embeddings == embedding
    assert decay.rows_estimate == decay.value == pytest.approx(3e-4, rel=1e-3)
    assert decay.low <= 3e-4 <= decay.high


@pytest.mark.parametrize("factor", [0.0, -1.0])
def test_rows_that_are_gone_or_flipped_are_no_decay(factor):
    g = torch.Generator().manual_seed(0)
    w0 = torch.randn(300, 64, generator=g)
    w = w0 + 0.1 * torch.randn(300, 64, generator=g)
    w[:100] = factor * w0[:100]
    assert not decay_of({"model.embed_tokens.weight": w0}, {"model.embed_tokens.weight": w}).visible


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("c", "evidence"), [(0.001, "none"), (0.0025, "none"), (0.0039, "step"), (0.005, "step"), (0.0058, "step")]
)
def test_below_the_gate_of_bfloat16_only_its_range_is_said(c, evidence, stored):
    base = {k: w.bfloat16() for k, w in weights().items()}
    ft = {k: (w.double() * (1 - c)).bfloat16().to(stored) for k, w in base.items()}
    decay = decay_of({k: w.to(stored) for k, w in base.items()}, ft)
    assert not decay.visible
    assert math.isnan(decay.value)
    assert decay.evidence == evidence
    if c > 0.002:
        assert decay.gate.in_the_way
        assert (decay.gate.dtype, decay.gate.threshold) == ("bfloat16", 2.0**-9)
        assert decay.gate.step == pytest.approx(0.006)
    if evidence == "step":
        assert decay.low < c < decay.high
        assert (decay.low, decay.high) == (decay.gate.threshold, decay.gate.step)


def test_a_cast_is_not_a_step():
    base = weights()
    assert decay_of(base, {k: w.bfloat16() for k, w in base.items()}).evidence == "none"


def test_above_the_gate_it_is_not_in_the_way():
    assert not found(DECAYS["pure, .05, bfloat16"].case()).gate.in_the_way
    assert not found(DECAYS["pure, .01"].case()).gate.in_the_way


def test_an_adapter_is_too_thin_to_have_decayed():
    rows = [{"route": "factored", "fro_norm": 1.0, "shrinkage": 0.01, "relative_change": 0.02, "rows": 99, "cols": 99}]
    assert not summarize_decay(rows).visible


def test_nothing_to_look_at():
    assert not summarize_decay([]).visible
    assert not summarize_decay([{"name": "x", "shrinkage": None, "shrinkage_z": math.nan}]).visible


def test_many_tensors_take_no_time_and_a_few_that_differ_change_nothing():
    g = np.random.default_rng(0)
    row = {"route": "dense", "relative_change": 2e-3, "rows": 1000, "cols": 1000, "fro_norm": 1.0}
    rows = [row | {"shrinkage": c, "shrinkage_kind": "uniform"} for c in g.normal(1e-3, 1e-6, 20_000)]
    rows += [row | {"shrinkage": 5e-4, "shrinkage_kind": "uniform"} for _ in range(100)]
    decay = summarize_decay(rows)
    assert decay.value == pytest.approx(1e-3, rel=1e-3)
    assert (decay.agree, decay.informative) == (20_000, 20_100)


def test_it_is_kept_with_the_results(tmp_path):
    case = pair(learnt(0.01, 0.02))
    analysis = deltaw.analyze(case.base, case.ft, device="cpu", jobs=1)
    analysis.save(tmp_path)
    assert asdict(deltaw.load(tmp_path).summary.decay) == asdict(analysis.summary.decay)


def half_seen(decay, steps=200, lr=1e-2):
    """AdamW on an embedding of which half the tokens occur, a layer that learns, and one that gets no gradient."""
    torch.manual_seed(0)
    net = torch.nn.ModuleDict(
        {
            "embedding": torch.nn.Embedding(200, 32),
            "layer": torch.nn.Linear(32, 32),
            "head": torch.nn.Linear(32, 4),
            "idle": torch.nn.Linear(32, 32),
        }
    )
    start = {k: v.detach().clone() for k, v in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    kept, data = 1.0, torch.Generator().manual_seed(1)
    for _ in range(steps):
        tokens = torch.randint(0, 100, (64,), generator=data)
        optimizer.zero_grad()
        logits = net["head"](torch.tanh(net["layer"](net["embedding"](tokens))))
        loss = torch.nn.functional.cross_entropy(logits, tokens % 4)
        # AdamW decays only what has a gradient: of zeros, where nothing was learnt
        (loss + 0.0 * sum(p.sum() for p in net["idle"].parameters())).backward()
        kept *= 1 - schedule.get_last_lr()[0] * decay
        optimizer.step()
        schedule.step()
    return start, net.state_dict(), 1 - kept


def test_tokens_never_seen_and_a_layer_without_gradient():
    start, end, expected = half_seen(decay=0.2)
    _, plain, _ = half_seen(decay=0.0)
    analysis = deltaw.analyze(start, end, device="cpu", jobs=1)
    frame = analysis.to_pandas().set_index("name")
    assert 0.1 < expected < 0.3
    assert frame.loc["idle.weight", "shrinkage"] == pytest.approx(expected, rel=1e-3)
    assert frame.loc["idle.weight", "shrinkage_kind"] == "uniform"
    assert frame.loc["embedding.weight", "decay_rows_fraction"] == pytest.approx(0.5, abs=0.05)
    assert frame.loc["embedding.weight", "decay_rows_kind"] == "uniform"
    assert frame.loc["embedding.weight", "decay_estimate"] == pytest.approx(expected, rel=1e-3)
    assert frame.loc["embedding.weight", "decay_rows_spread"] < 1e-3 * expected
    assert analysis.summary.decay.value == pytest.approx(expected, rel=0.01)
    control = deltaw.analyze(start, plain, device="cpu", jobs=1)
    assert control.to_pandas()["decay_rows_fraction"].max() < 0.05
    assert not control.summary.decay.visible
