"""Is a common decay seen where there is one, and not where there is none? On made tensors and on real AdamW steps."""

import math

import numpy as np
import pytest
import torch

from deltaw.delta.sums import sweep
from deltaw.metrics import evaluate
from deltaw.results.decay import summarize_decay


def measured(name, w0, w):
    _, sums = sweep(w0, w, keep=False)
    quantities = sums.quantities() if w0.ndim == 2 else sums.totals()
    dtype = str(w.dtype).removeprefix("torch.")
    return {"name": name, "rows": sums.rows, "cols": sums.cols, "ft_dtype": dtype} | evaluate(quantities)


def model(c, n=20, learnt=2e-3, exempt=(), dtype=torch.float32, seed=0, size=120):
    """Tensors that learnt something at random and decayed by c, except the exempt ones."""
    g = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(n):
        w0 = 0.02 * torch.randn(size, size, generator=g)
        update = learnt * 0.02 * torch.randn(size, size, generator=g)
        w0 = w0.to(dtype)
        w = ((w0.double() * (1 - (0 if i in exempt else c))) + update).to(dtype)
        rows.append(measured(f"t{i}", w0, w))
    return rows


@pytest.mark.parametrize("c", [1e-4, 1e-3, 1e-2, 0.1])
def test_a_common_decay_is_seen(c):
    found = summarize_decay(model(c, learnt=0.1 * c))
    assert found.visible
    assert found.evidence in ("tensors", "rows")
    assert found.value == pytest.approx(c, rel=0.01)
    assert found.agree == 20
    assert found.exempt == 0


def test_a_decay_under_much_learning():
    found = summarize_decay(model(2e-3, learnt=2e-2))
    assert found.evidence == "tensors"
    assert found.value == pytest.approx(2e-3, rel=0.05)
    assert found.agree >= 18


def test_exempt_tensors_are_named():
    found = summarize_decay(model(1e-2, exempt=(3, 7, 8)))
    assert found.value == pytest.approx(1e-2, rel=0.01)
    assert found.exempt_tensors == ("t3", "t7", "t8")
    assert (found.agree, found.exempt) == (17, 3)


@pytest.mark.parametrize("seed", range(8))
def test_without_decay_none_is_seen(seed):
    found = summarize_decay(model(0.0, n=30, seed=seed, size=60))
    assert not found.visible
    assert found.evidence == "none"
    assert math.isnan(found.value)
    assert found.agree == found.informative == 0


def test_growth_is_no_decay():
    assert not summarize_decay(model(-1e-2)).visible


def test_unequal_shrinks_are_no_common_decay():
    """Learning that shrinks every tensor by its own amount."""
    rows = [row for i in range(12) for row in model(1e-4 * 2**i, n=1, learnt=1e-5, seed=i)]
    rows = [row | {"decay_rows_fraction": 0.0} for row in rows]
    assert not summarize_decay(rows).visible


def test_rows_never_seen_answer_alone():
    g = torch.Generator().manual_seed(0)
    w0 = torch.randn(500, 64, generator=g)
    w = w0 * (1 - 3e-4)
    w[:50] += 0.1 * torch.randn(50, 64, generator=g)
    found = summarize_decay([measured("embedding", w0, w)])
    assert found.visible
    assert found.evidence == "rows"
    assert found.rows_tensors == 1
    assert found.rows_estimate == found.value == pytest.approx(3e-4, rel=1e-3)


def test_the_gate_is_in_the_way():
    hidden = summarize_decay(model(1e-3, learnt=0.0, dtype=torch.bfloat16))
    assert not hidden.visible
    assert hidden.gate.in_the_way
    assert (hidden.gate.dtype, hidden.gate.threshold, hidden.gate.tensors) == ("bfloat16", 2.0**-9, 20)
    seen = summarize_decay(model(2e-2, learnt=0.0, dtype=torch.bfloat16))
    assert seen.value == pytest.approx(2e-2, rel=0.1)
    assert not seen.gate.in_the_way
    assert not summarize_decay(model(1e-3)).gate.in_the_way


def test_nothing_to_look_at():
    assert not summarize_decay([]).visible
    assert not summarize_decay([{"name": "x", "shrinkage": None, "shrinkage_z": math.nan}]).visible


def test_many_tensors_take_no_time():
    g = np.random.default_rng(0)
    rows = [
        {"name": str(i), "shrinkage": c, "shrinkage_z": c / 1e-5} for i, c in enumerate(g.normal(1e-3, 1e-5, 20_000))
    ]
    found = summarize_decay(rows)
    assert found.value == pytest.approx(1e-3, rel=1e-3)


def train(decay, steps=200, lr=1e-2):
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


def test_200_steps_of_adamw():
    start, end, expected = train(decay=0.2)
    _, plain, _ = train(decay=0.0)
    decayed = {k: measured(k, start[k], end[k]) for k in start}
    control = {k: measured(k, start[k], plain[k]) for k in start}
    assert 0.1 < expected < 0.3
    for name in ("idle.weight", "idle.bias"):
        assert decayed[name]["shrinkage"] == pytest.approx(expected, rel=0.05)
        assert control[name]["fro_norm"] == 0
    assert decayed["embedding.weight"]["decay_rows_fraction"] == pytest.approx(0.5, abs=0.05)
    assert decayed["embedding.weight"]["decay_estimate"] == pytest.approx(expected, rel=0.05)
    assert control["embedding.weight"]["decay_rows_fraction"] < 0.05
    gap = {k: decayed[k]["shrinkage_z"] - control[k]["shrinkage_z"] for k in ("embedding.weight", "layer.weight")}
    assert all(z > 3 for z in gap.values()), gap
    found = summarize_decay(list(decayed.values()))
    assert found.evidence == "rows"
    assert found.value == pytest.approx(expected, rel=0.05)
    assert not summarize_decay(list(control.values())).visible
