"""A monitor in a loop of one's own: its numbers, its warnings, and what it leaves alone."""

from __future__ import annotations

import gc
import math
import warnings
import weakref
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import deltaw
from deltaw.errors import OptionError
from deltaw.monitoring.scalars import scalars


def make_model(seed: int = 0, width: int = 24) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(16, width), torch.nn.Tanh(), torch.nn.Linear(width, 16))


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    (model(x) - x.roll(1, 1)).square().mean().backward()
    optimizer.step()


def test_the_log_equals_analyze_of_saved_weights() -> None:
    model = make_model()
    base = {n: t.clone() for n, t in model.state_dict().items()}
    logged: dict[int, dict[str, float]] = {}
    monitor = deltaw.Monitor(
        model, every=2, at=[3], log=lambda numbers, step: logged.__setitem__(step, numbers), device="cpu", jobs=1
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    saved = {}
    for i in range(1, 5):
        step(model, optimizer, i)
        monitor.step(i)
        saved[i] = {n: t.clone() for n, t in model.state_dict().items()}
    assert list(logged) == [2, 3, 4]
    for i, numbers in logged.items():
        found = deltaw.analyze(base, saved[i], device="cpu", jobs=1)
        assert numbers == scalars(found)
        matrices = found.to_pandas().query("ndim == 2")
        assert numbers["deltaw/all/relative_change"] == matrices["relative_change"].median()
    assert monitor.to_pandas()["step"].tolist() == [2, 3, 4]
    assert all(key.count("/") == 2 for key in logged[2])
    assert 0 < monitor.overhead < 1


def test_at_most_twenty_scalars_however_many_kinds() -> None:
    names = ["layers.0.self_attn.q_proj", "layers.0.mlp.up_proj", "embed_tokens", "lm_head", "conv1", "other", "norm"]
    base = {
        f"model.{n}.weight": torch.randn(8, 8, generator=torch.Generator().manual_seed(i)) for i, n in enumerate(names)
    }
    found = scalars(deltaw.analyze(base, {n: t + 0.1 * torch.randn(8, 8) for n, t in base.items()}, device="cpu"))
    assert 15 < len(found) <= 20
    assert all(math.isfinite(v) for v in found.values())


def test_training_is_the_same_with_and_without() -> None:
    ends = []
    for watched in (False, True):
        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        monitor = deltaw.Monitor(model, every=1, device="cpu", jobs=1) if watched else None
        for i in range(1, 4):
            x = torch.randn(8, 16)  # of the global generator
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            if monitor is not None:
                monitor.step(i)
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_model_and_its_tensors_are_not_kept_alive() -> None:
    model = make_model()
    monitor = deltaw.Monitor(model, every=1, device="cpu", jobs=1)
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    monitor.step(1)
    alive = [weakref.ref(p) for p in model.parameters()]
    del model
    gc.collect()
    assert [ref() for ref in alive] == [None] * 4
    with pytest.raises(OptionError, match="is gone"):
        monitor.step(2)


def test_memory_is_flat_over_a_thousand_steps() -> None:
    """Tensors that live, counted: no record keeps one."""
    model = make_model(width=4)
    monitor = deltaw.Monitor(model, every=20, device="cpu", jobs=1)
    counts, analyses = [], []
    for i in range(1, 1001):
        with torch.no_grad():
            next(model.parameters()).add_(1e-3 * torch.randn(4, 16, generator=torch.Generator().manual_seed(i)))
        if monitor.step(i) is not None and i % 200 == 0:
            gc.collect()
            counts.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))
            analyses.append(sum(type(o) is deltaw.Analysis for o in gc.get_objects()))
    assert len(monitor.records) == 50
    assert len(set(counts)) == 1, counts
    assert len(set(analyses)) == 1, analyses


def test_tied_weights_are_one_and_the_base_is_a_copy() -> None:
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(12, 8), "head": torch.nn.Linear(8, 12, bias=False)})
    model["head"].weight = model["embed"].weight
    monitor = deltaw.Monitor(model, every=1, device="cpu")
    with torch.no_grad():
        model["embed"].weight.mul_(1.5)
    monitor.step(1)
    assert monitor.last is not None
    assert len(monitor.last.rows) == 1
    assert monitor.last.rows[0]["relative_change"] == pytest.approx(0.5)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"modules_to_save": ["head"]}], ids=str)
def test_adapters_are_measured_as_they_would_be_saved(tmp_path: Path, options: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.head = torch.nn.Linear(16, 24), torch.nn.Linear(24, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.head(self.up(x)))

    torch.manual_seed(0)
    net = Net()
    base = {n: t.clone() for n, t in net.state_dict().items()}
    model = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["up"], **options))
    monitor = deltaw.Monitor(model, every=1, device="cpu", jobs=1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape))
    monitor.step(1)
    model.save_pretrained(tmp_path)
    expected = deltaw.analyze(base, tmp_path, device="cpu", jobs=1)
    assert monitor.last is not None
    tables = [a.to_pandas().drop(columns="seconds").sort_values("name") for a in (monitor.last, expected)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    if not options:
        assert set(tables[0]["route"]) == {"factored"}


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, "nf4"),
        ({"load_in_8bit": True}, "bnb_int8"),
    ],
    ids=["four bits", "eight bits"],
)
def test_an_adapter_on_a_quantised_base(tmp_path: Path, options: dict[str, Any], dtype: str) -> None:
    """Its codes are no weights: as `analyze` measures the adapter on that base, saved."""
    peft, transformers, _ = (pytest.importorskip(name) for name in ("peft", "transformers", "bitsandbytes"))
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "whole")
    quantised = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "whole", quantization_config=transformers.BitsAndBytesConfig(**options), device_map="cpu"
    )
    quantised.save_pretrained(tmp_path / "base")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own, of an attribute that transformers renamed
        model = peft.get_peft_model(quantised, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
        monitor = deltaw.Monitor(model, every=1, device="cpu", jobs=1)
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.add_(0.1 * torch.randn(p.shape))
    monitor.step(1)
    model.save_pretrained(tmp_path / "adapter")
    expected = deltaw.analyze(tmp_path / "base", tmp_path / "adapter", device="cpu", jobs=1).to_pandas()
    assert monitor.last is not None
    tables = [t.drop(columns="seconds").sort_values("name") for t in (monitor.last.to_pandas(), expected)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert set(expected["base_dtype"]) == {dtype}
    whole = deltaw.analyze(tmp_path / "whole", tmp_path / "adapter", device="cpu", jobs=1).to_pandas()
    assert expected["relative_change"].to_numpy() == pytest.approx(whole["relative_change"].to_numpy(), rel=0.05)


def test_spectra_of_large_models_are_estimated_unless_asked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is trained: tied weights once, frozen ones not, and an adapter is measured from its factors."""
    peft = pytest.importorskip("peft")
    monkeypatch.setattr(deltaw.monitoring.monitor, "LARGE", 24 * 16)

    def mode(model: Any, **options: Any) -> str:
        monitor = deltaw.Monitor(model, every=1, device="cpu", jobs=1, **options)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(0.1 * torch.randn(p.shape))
        monitor.step(1)
        assert monitor.last is not None
        return str(monitor.last.options["mode"])

    def tied() -> torch.nn.Module:
        model = torch.nn.ModuleDict({n: torch.nn.Linear(16, 24, bias=False) for n in ("embed", "head")})
        model["head"].weight = model["embed"].weight
        return model

    def frozen() -> torch.nn.Module:
        model = make_model()
        model[0].requires_grad_(False)
        model[2].bias.requires_grad_(False)  # type: ignore[union-attr]
        return model

    assert [mode(m) for m in (make_model(), tied(), frozen())] == ["fast", "exact", "exact"]
    assert mode(make_model(), mode="exact") == "exact"
    assert mode(tied(), mode="fast") == "fast"
    adapter = peft.get_peft_model(make_model(), peft.LoraConfig(r=16, target_modules=["0", "2"]))
    assert mode(adapter) == "exact"


def alerts_of(change: Any, records: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, deltaw.Alert]:
    model = torch.nn.Linear(32, 32, bias=False, dtype=dtype)
    torch.nn.init.normal_(model.weight, generator=torch.Generator().manual_seed(0))
    found: list[deltaw.Alert] = []
    monitor = deltaw.Monitor(model, every=1, on_alert=found.append, device="cpu")
    W0 = model.weight.detach().clone()
    for i in range(1, records + 1):
        with torch.no_grad():
            model.weight.copy_(change(W0.float(), i))
        monitor.step(i)
    return {a.rule: a for a in found}


def noise(seed: int = 1) -> torch.Tensor:
    return torch.randn(32, 32, generator=torch.Generator().manual_seed(seed))


def outer() -> torch.Tensor:
    u = noise(2)[:, :1]
    return u @ noise(3)[:1] / (u.norm() * noise(3)[:1].norm())


def test_rules_that_hold_and_rules_that_do_not() -> None:
    assert alerts_of(lambda W, _: W + 1e-2 * noise()) == {}
    assert set(alerts_of(lambda W, _: W - 0.01 * W)) == {"decay_exceeds_learning"}
    assert alerts_of(lambda W, _: W + 0.01 * W) == {}, "a growing base is no decay"
    assert set(alerts_of(lambda W, _: W + 1e-4 * noise(), dtype=torch.bfloat16)) >= {"below_precision"}
    collapse = alerts_of(lambda W, i: W + (1e-2 * noise() if i == 1 else outer()), records=3)
    assert set(collapse) == {"rank_collapse"}
    assert collapse["rank_collapse"].step == 2, "told once"


def test_a_direction_leaves_the_bulk_at_its_edge() -> None:
    """σ1 of a rank-one update against (m·n)^¼ times the root mean square of W0."""
    rms = float(alerts_of_base().square().mean().sqrt())
    edge = 32**0.5 * rms
    assert "leaves_bulk" not in alerts_of(lambda W, _: W + 0.98 * edge * outer())
    found = alerts_of(lambda W, _: W + 1.02 * edge * outer())["leaves_bulk"]
    assert found.value == pytest.approx(1.02, rel=1e-3)
    assert "one matrix has a direction" in found.text


def directions(values: list[float]) -> torch.Tensor:
    """A matrix with these singular values."""
    Q = torch.linalg.qr(noise(4))[0]
    return Q[:, : len(values)] * torch.tensor(values) @ Q[:, : len(values)].T


@pytest.mark.parametrize(("second", "holds"), [([1.0] * 10 + [0.05], False), ([1.0] * 9 + [0.9], True)])
def test_a_rank_collapses_below_half_of_the_largest_before(second: list[float], holds: bool) -> None:
    """20 equal directions have an effective rank of 20; then a little more than ten, or less."""
    found = alerts_of(lambda W, i: W + 1e-2 * directions([1.0] * 20 if i == 1 else second), records=2)
    assert (set(found) == {"rank_collapse"}) is holds
    if holds:
        alert = found["rank_collapse"]
        assert alert.limit == pytest.approx(10, rel=1e-3)  # the weights are float32
        assert alert.value == pytest.approx(deltaw.metrics.effective_rank(second), rel=1e-3)


@pytest.mark.parametrize("share", [0.49, 0.51])
def test_decay_exceeds_learning_at_half_of_the_energy(share: float) -> None:
    def change(W: torch.Tensor, _: int) -> torch.Tensor:
        other = noise() - (noise() * W).sum() / W.square().sum() * W  # orthogonal to W
        return W - 1e-2 * (share**0.5 * W / W.norm() + (1 - share) ** 0.5 * other / other.norm())

    found = alerts_of(change)
    assert set(found) == ({"decay_exceeds_learning"} if share > 0.5 else set())
    if found:
        assert found["decay_exceeds_learning"].value == pytest.approx(share, rel=1e-3)


@pytest.mark.parametrize("below", [2, 3])
def test_updates_below_precision_in_more_than_half_of_the_matrices(below: int) -> None:
    """Of four: half of them is no warning, and it is told again when it holds again."""
    model = torch.nn.ModuleList(torch.nn.Linear(32, 32, bias=False, dtype=torch.bfloat16) for _ in range(4))
    found: list[deltaw.Alert] = []
    monitor = deltaw.Monitor(model, every=1, on_alert=found.append, device="cpu")
    start = [layer.weight.detach().float() for layer in model]
    for i, tiny in enumerate((below, 0, below), 1):
        with torch.no_grad():
            for j, layer in enumerate(model):
                layer.weight.copy_(start[j] + (1e-5 if j < tiny else 1e-1) * noise(j))
        monitor.step(i)
    assert [r.scalars["deltaw/all/below_precision"] for r in monitor.records] == [below / 4, 0, below / 4]
    told = [(a.step, a.value) for a in found if a.rule == "below_precision"]
    assert told == ([(1, 0.75), (3, 0.75)] if below == 3 else [])


def alerts_of_base() -> torch.Tensor:
    return torch.nn.init.normal_(torch.empty(32, 32), generator=torch.Generator().manual_seed(0))


def test_files_plots_and_options(tmp_path: Path) -> None:
    model = make_model()
    monitor = deltaw.Monitor(model, every=1, out=tmp_path, mode="fast", include=["weight"], device="cpu")
    with pytest.raises(OptionError, match="0 records"):
        monitor.plot.scalars()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for i in (1, 2):
        step(model, optimizer, i)
        monitor.step(i)
    assert deltaw.load(tmp_path / "step-00000002").options["mode"] == "fast"
    axes = monitor.plot.scalars()
    assert [line.get_label() for line in axes[0].lines][:1] == ["all"]
    for options, words in (({"every": 0}, "every = 0"), ({"save": lambda *_: None}, "needs `base`")):
        with pytest.raises(OptionError, match=words):
            deltaw.Monitor(model, **options)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_plot_marks_where_a_warning_began(sign: int) -> None:
    """A base that shrinks is warned of, one that grows is not."""
    model = torch.nn.Linear(16, 16, bias=False)
    monitor = deltaw.Monitor(model, every=1, device="cpu")
    for i in (1, 2, 3):
        with torch.no_grad():
            model.weight.mul_(1 - sign * 0.01)
        monitor.step(i)
    axes = monitor.plot.scalars()
    (legend,) = axes[0].figure.legends
    assert [t.get_text() for t in legend.get_texts()].count("a warning") == (sign > 0)
    marks = [[line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"] for ax in axes]
    assert marks == [[1] if sign > 0 else []] * len(axes)
