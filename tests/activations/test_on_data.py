"""On data: ‖ΔW·C^½‖F² is the mean of ‖ΔW·x‖², C = I gives the plain columns, and planted updates are told apart."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import deltaw
from deltaw.activations.file import write_activations
from deltaw.activations.moments import Moments
from deltaw.activations.on_data import effect
from deltaw.errors import ActivationsError, OptionError
from deltaw.spectra import singular_values
from deltaw.types import Factors
from tests.activations.conftest import met
from tests.conftest import save_lora, save_single

PLAIN = ("relative_change", "effective_rank", "rank_90", "energy_at_16")


def draw(*shape: int, seed: int = 0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def moments_of(x):
    return Moments("moments", x.T @ x, len(x), float(x.square().sum()))


def row(result, name: str):
    return result.to_pandas().set_index("name").loc[name]


def measured(W0, W, path, **options):
    return row(deltaw.analyze({"w.weight": W0}, {"w.weight": W}, activations=path, **options), "w.weight")


def stored(path, *moments):
    return tuple(write_activations(path / f"{i}.safetensors", {"w.weight": m}) for i, m in enumerate(moments))


@pytest.mark.parametrize("inputs", [9, 400])  # fewer than dimensions: C is singular
@pytest.mark.parametrize("shape", [(12, 20), (40, 20)])
def test_it_is_the_mean_over_the_inputs(tmp_path, shape, inputs):
    W0, D, x = draw(*shape), 0.01 * draw(*shape, seed=1), draw(inputs, shape[1], seed=2) + 0.5
    found = measured(W0, W0 + D, stored(tmp_path, moments_of(x)))
    delta = (W0 + D) - W0
    expected = (x @ delta.T).square().sum(1).mean() / (x @ W0.T).square().sum(1).mean()
    assert found["relative_change_on_data"] == pytest.approx(math.sqrt(expected), rel=1e-9)
    s = np.linalg.svd((x @ delta.T).numpy(), compute_uv=False)[: min(shape)]
    assert found["rank_90_on_data"] == deltaw.metrics.rank_90(s)
    assert found["energy_at_16_on_data"] == pytest.approx(deltaw.metrics.energy_at_16(s), rel=1e-9)
    assert found["effective_rank_on_data"] == pytest.approx(deltaw.metrics.effective_rank(s), rel=1e-6)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_white_inputs_give_the_plain_columns(tmp_path, mode):
    W0, D = draw(24, 16), 0.01 * draw(24, 16, seed=1)
    white = Moments("moments", 7 * torch.eye(16, dtype=torch.float64), 7, 7.0 * 16)
    found = measured(W0, W0 + D, stored(tmp_path, white, white), mode=mode)
    for name in PLAIN:
        assert found[f"{name}_on_data"] == pytest.approx(found[name], rel=1e-9)
        assert found[f"{name}_on_source"] == pytest.approx(found[name], rel=1e-9)
    assert found["selectivity"] == pytest.approx(1)
    if mode == "fast":
        assert found["rank_90_on_data_low"] == found["rank_90_on_data_high"] == found["rank_90"]


def test_a_turn_of_the_inputs_changes_nothing(tmp_path):
    W0, D, x = draw(10, 14), draw(10, 14, seed=1), draw(90, 14, seed=2)
    Q = torch.linalg.qr(draw(14, 14, seed=3)).Q
    plain = measured(W0, W0 + D, stored(tmp_path, moments_of(x)))
    turned = measured(W0 @ Q, (W0 + D) @ Q, stored(tmp_path, moments_of(x @ Q)))
    for name in PLAIN:
        assert turned[f"{name}_on_data"] == pytest.approx(plain[f"{name}_on_data"], rel=1e-9)


def test_of_an_embedding_each_row_counts_as_often_as_its_token(tmp_path):
    W0, D = draw(30, 8), draw(30, 8, seed=1)
    counts = torch.arange(30, dtype=torch.float64)
    kept = Moments("counts", counts, int(counts.sum()), float(counts.sum()))
    found = measured(W0, W0 + D, stored(tmp_path, kept))
    p = counts / counts.sum()
    delta = (W0 + D) - W0
    expected = (p @ delta.square().sum(1)) / (p @ W0.square().sum(1))
    assert found["relative_change_on_data"] == pytest.approx(math.sqrt(expected), rel=1e-9)
    s = np.linalg.svd((p.sqrt()[:, None] * delta).numpy(), compute_uv=False)
    assert found["effective_rank_on_data"] == pytest.approx(deltaw.metrics.effective_rank(s), rel=1e-6)


def test_factors_stay_factors_and_agree_with_their_product():
    W0, x = draw(30, 20), draw(200, 20, seed=2)
    factors = Factors(draw(30, 3, seed=3), draw(3, 20, seed=4))
    moments = moments_of(x)
    assert isinstance(moments.apply(factors), Factors)
    dense = factors.B @ factors.A
    a, b = (effect(d, W0, moments, singular_values(dense)) for d in (factors, dense))
    assert a.delta_sq == pytest.approx(b.delta_sq, rel=1e-12)
    np.testing.assert_allclose(a.found.values[:3], b.found.values[:3], rtol=1e-9)
    counts = Moments("counts", torch.arange(30, dtype=torch.float64), 435, 435.0)
    assert effect(factors, W0, counts, singular_values(dense)).delta_sq == pytest.approx(
        float((counts.sums / 435) @ dense.square().sum(1)), rel=1e-12
    )


def test_a_sketch_has_an_interval_that_holds_the_truth(tmp_path):
    W0, D = draw(20, 60), draw(20, 60, seed=1)
    x = draw(500, 60, seed=2) * torch.logspace(0, -1.5, 60, dtype=torch.float64)
    model = nn.Linear(60, 20, bias=False).double()
    for name, options in {"exact": {}, "sketch": {"sketch_above": 50, "sketch_rows": 12}}.items():
        deltaw.collect_activations(model, x.split(50), tmp_path / name, **options)
    base, ft = {"weight": W0}, {"weight": W0 + D}
    exact, sketch = (
        row(deltaw.analyze(base, ft, activations=(tmp_path / name, tmp_path / name)), "weight")
        for name in ("exact", "sketch")
    )
    for column in ("relative_change_on_data", "rank_90_on_data", "energy_at_16_on_data", "selectivity"):
        assert sketch[f"{column}_low"] <= exact[column] <= sketch[f"{column}_high"], column
        assert sketch[f"{column}_low"] <= sketch[column] <= sketch[f"{column}_high"], column
    assert sketch["relative_change_on_data"] == pytest.approx(exact["relative_change_on_data"], rel=0.05)
    assert math.isnan(sketch["effective_rank_on_data"])  # a sum over small σ, of which a sketch knows nothing


class TwoDomains(nn.Module):
    """Two layers that are trained on one subspace of inputs, and then on another."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(24, 16, bias=False).double(), nn.Linear(16, 4).double()

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def test_an_update_that_the_source_never_meets(tmp_path):
    Q = torch.linalg.qr(draw(24, 24)).Q
    source, target = draw(300, 10, seed=1) @ Q[:10], draw(300, 14, seed=2) @ Q[10:]
    model = TwoDomains()
    files = [deltaw.collect_activations(model, [x], tmp_path / n) for n, x in (("t", target), ("s", source))]
    wanted = draw(300, 4, seed=3)
    before = nn.functional.mse_loss(model(source), wanted)
    ft = {k: v.clone() for k, v in model.state_dict().items()}
    ft["first.weight"] += 0.3 * draw(16, 14, seed=4) @ Q[10:]
    found = row(deltaw.analyze(model.state_dict(), ft, activations=files), "first.weight")
    assert found["relative_change"] > 0.1
    assert found["relative_change_on_source"] <= 1e-6 * found["relative_change"]
    assert found["relative_change_on_data"] > found["relative_change"]
    model.load_state_dict(ft)
    after = nn.functional.mse_loss(model(source), wanted)
    assert abs(after - before) <= 1e-6 * before


def test_selectivity_orders_five_planted_updates(tmp_path):
    Q = torch.linalg.qr(draw(20, 20)).Q
    target, source = draw(400, 10, seed=1) @ Q[:10], draw(400, 10, seed=2) @ Q[10:]
    noise = 0.05 * draw(400, 20, seed=3)
    files = stored(tmp_path, moments_of(target + noise), moments_of(source + noise))
    W0, u = draw(12, 20), draw(12, 10, seed=4)
    found = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):  # of the update that lies in the target's directions
        D = 0.1 * (share * u @ Q[:10] + (1 - share) * u @ Q[10:])
        found.append(measured(W0, W0 + D, files)["selectivity"])
    assert found == sorted(found)
    assert found[0] < 0.2 < 0.8 < found[2] < 1.25 < 5 < found[4]


def test_every_route_has_the_columns(tmp_path, pico):
    base = save_single(pico, tmp_path / "base")
    lora = save_lora(tmp_path / "lora")
    name = "model.layers.0.self_attn.q_proj.weight"
    x = draw(64, 16, seed=5)
    file = write_activations(
        tmp_path / "a.safetensors", {n: moments_of(x) for n in pico if n.endswith("proj.weight") and "down" not in n}
    )
    factored = row(deltaw.analyze(base, lora, activations=file), name)
    assert factored["route"] == "factored"
    dense = row(deltaw.analyze(base, base, activations=file), name)
    assert dense["route"] == "unchanged"
    assert dense["relative_change_on_data"] == dense["rank_90_on_data"] == 0
    alone = row(deltaw.analyze(None, lora, activations=file), name)
    assert math.isnan(alone["relative_change_on_data"])
    assert alone["rank_90_on_data"] == factored["rank_90_on_data"] > 0
    tensors = {k: v.double() for k, v in deltaw_lora(lora).items()}
    merged = {**pico, name: pico[name].double() + 2 * tensors["B"] @ tensors["A"]}
    whole = row(deltaw.analyze(pico, merged, activations=file), name)
    assert whole["route"] == "dense"
    for column in PLAIN:
        assert whole[f"{column}_on_data"] == pytest.approx(factored[f"{column}_on_data"], rel=1e-6)


def deltaw_lora(folder):
    from safetensors.torch import load_file

    found = load_file(folder / "adapter_model.safetensors")
    return {
        "A": next(v for k, v in found.items() if "lora_A" in k),
        "B": next(v for k, v in found.items() if "lora_B" in k),
    }


def test_a_quantised_base_is_measured_on_data(tmp_path):
    W0, x = draw(32, 64, dtype=torch.float32), draw(100, 64, seed=1)
    codes = (W0 / 0.02).to(torch.float8_e4m3fn)
    tensors = {"w.weight": codes, "w.weight_scale": torch.full((1,), 0.02)}
    folder = tmp_path / "fp8"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    weights = {"num_bits": 8, "type": "float", "strategy": "tensor"}
    scheme = {"format": "float-quantized", "config_groups": {"g": {"weights": weights, "targets": ["Linear"]}}}
    config = {"quantization_config": {"quant_method": "compressed-tensors", **scheme}}
    (folder / "config.json").write_text(json.dumps(config))
    W = codes.float() * 0.02 + 0.05 * draw(32, 64, seed=2, dtype=torch.float32)
    found = row(deltaw.analyze(folder, {"w.weight": W}, activations=stored(tmp_path, moments_of(x))), "w.weight")
    base = (codes.float() * 0.02).double()
    expected = (x @ (W.double() - base).T).norm() / (x @ base.T).norm()
    assert found["relative_change_on_data"] == pytest.approx(float(expected), rel=1e-6)


def test_a_network_end_to_end(network, batches, tmp_path):
    file = deltaw.collect_activations(network, batches, tmp_path / "a.safetensors")
    ft = {k: v + 0.05 * draw(*v.shape, seed=i) for i, (k, v) in enumerate(network.state_dict().items())}
    result = deltaw.analyze(network, ft, activations=file)
    seen = met(network, batches)
    state = network.state_dict()
    for name in ("q.weight", "k.weight", "experts.1.weight", "c_fc.weight"):
        x, W0, delta = seen[name], state[name], ft[name] - state[name]
        W0, delta = (W0, delta) if name == "c_fc.weight" else (W0.T, delta.T)
        expected = (x @ delta).norm() / (x @ W0).norm()
        assert row(result, name)["relative_change_on_data"] == pytest.approx(float(expected), rel=1e-6)
    assert math.isnan(row(result, "unused.weight")["relative_change_on_data"])
    assert "has the inputs of 7 of 8 matrices, and none of unused.weight" in " ".join(result.notes)


def test_other_inputs_are_not_resumed(tmp_path, pico):
    base, ft = (
        save_single(pico, tmp_path / "base"),
        save_single({k: v * 1.01 for k, v in pico.items()}, tmp_path / "ft"),
    )
    files = {}
    for i in (1, 2):
        x = draw(50, 16, seed=i)
        files[i] = write_activations(
            tmp_path / f"{i}.safetensors", {"model.layers.0.self_attn.q_proj.weight": moments_of(x)}
        )
    done = [0]

    def stop(progress):
        done[0] = progress.done
        if progress.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deltaw.analyze(base, ft, activations=files[1], out=tmp_path / "out", jobs=1, progress=stop)
    seen = []
    deltaw.analyze(base, ft, activations=files[1], out=tmp_path / "out", jobs=1, progress=lambda p: seen.append(p.done))
    assert seen[0] > 5  # gone on from what was finished
    with pytest.raises(KeyboardInterrupt):
        deltaw.analyze(base, ft, activations=files[1], out=tmp_path / "out", jobs=1, resume=False, progress=stop)
    seen.clear()
    deltaw.analyze(base, ft, activations=files[2], out=tmp_path / "out", jobs=1, progress=lambda p: seen.append(p.done))
    assert seen[0] == 1


def test_bad_activations_are_one_line(tmp_path, pico):
    W0 = draw(6, 4)
    good = stored(tmp_path, moments_of(draw(9, 4)))
    with pytest.raises(OptionError, match="3 files of activations"):
        measured(W0, W0 + 1, good * 3)
    wide = stored(tmp_path, moments_of(draw(9, 5)))
    with pytest.raises(ActivationsError, match=r"has 5 entries, its matrix is 6×4"):
        measured(W0, W0 + 1, wide)
    other = write_activations(tmp_path / "o.safetensors", {"other.weight": moments_of(draw(9, 9))})
    with pytest.raises(ActivationsError, match="holds the inputs of no matrix"):
        deltaw.analyze(pico, {k: v + 1 for k, v in pico.items()}, activations=other)
