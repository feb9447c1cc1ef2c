"""MoRA against explicit matrices, and against the adapter loader that reads what is saved here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import deltaw
from deltaw.adapters.mora import width
from deltaw.errors import OptionError
from deltaw.study import mora

SHAPES = [(16, 16), (24, 16), (16, 24), (7, 19), (40, 12), (13, 30)]  # outputs × inputs


def layer(outputs: int, inputs: int, kind: int, rank: int = 2) -> mora.MoRALinear:
    torch.manual_seed(outputs * 100 + inputs)
    found = mora.MoRALinear(nn.Linear(inputs, outputs, bias=False).double(), rank, kind)
    nn.init.normal_(found.M)
    return found


def naive(M: np.ndarray, outputs: int, inputs: int, kind: int) -> np.ndarray:
    """ΔW by the definition, one entry of the padded input at a time."""
    r = len(M)
    blocks = math.ceil(inputs / r)
    f = [10000 ** (-2 * j / r) for j in range(r // 2)]
    theta = f + f
    columns = []
    for c in range(inputs):
        x = np.zeros(blocks * r)
        x[c] = 1
        if c < blocks * r - inputs:
            x[inputs + c] = 1  # the last block wraps round
        pieces = []
        for i in range(blocks):
            piece = x[i * r : (i + 1) * r]
            if kind == 6:
                half = r // 2
                turned = np.concatenate([-piece[half:], piece[:half]])
                piece = piece * np.cos(np.multiply(i, theta)) + turned * np.sin(np.multiply(i, theta))
            pieces.append(piece)
        y = M @ sum(pieces) if kind == 1 else np.concatenate([M @ p for p in pieces])
        columns.append(np.resize(y, outputs))  # cut, or repeated
    return np.array(columns).T


@pytest.mark.parametrize("kind", mora.TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_update_is_its_definition(shape: tuple[int, int], kind: int) -> None:
    outputs, inputs = shape
    found = layer(outputs, inputs, kind)
    dW = found.update(torch.eye(inputs, dtype=torch.float64)).detach().numpy().T
    np.testing.assert_allclose(dW, naive(found.M.detach().numpy(), outputs, inputs, kind), atol=1e-12)
    x = torch.randn(3, 5, inputs, dtype=torch.float64)
    expected = x @ (found.base.weight + torch.tensor(dW)).T
    torch.testing.assert_close(found(x), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", mora.TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_costs_what_lora_costs(shape: tuple[int, int], kind: int) -> None:
    r = width(*shape, 2, kind)
    root = math.sqrt(2 * sum(shape))
    assert -1.5 <= r - root <= 0.5  # rounded, and made even for type 6
    assert kind == 1 or r % 2 == 0


@pytest.mark.parametrize("kind", mora.TYPES)
def test_it_starts_at_the_base_and_trains_m_alone(kind: int) -> None:
    base = nn.Linear(16, 24)
    found = mora.MoRALinear(base, 2, kind, dropout=0.5)
    x = torch.randn(4, 16)
    torch.testing.assert_close(found(x), base(x), atol=0, rtol=0)
    assert [n for n, p in found.named_parameters() if p.requires_grad] == ["M"]


def test_dropout_acts_in_training_alone() -> None:
    found = mora.MoRALinear(nn.Linear(16, 16), 2, 6, dropout=0.5)
    nn.init.normal_(found.M)
    x = torch.randn(64, 16)
    assert not torch.equal(found.train()(x), found.eval()(x))
    assert torch.equal(found.eval()(x), found.eval()(x))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(OptionError, match="mora_type 2"):
        mora.MoRALinear(nn.Linear(16, 16), 2, 2)
    with pytest.raises(OptionError, match="expected 1 to 16"):
        mora.MoRALinear(nn.Linear(16, 400), 8, 1)
    with pytest.raises(OptionError, match="none beside its output layer"):
        mora.inject(nn.Sequential(), [], 2, 6, 0.0)


@pytest.mark.parametrize("kind", mora.TYPES)
def test_the_saved_adapter_reads_as_what_was_trained(tmp_path: Path, kind: int) -> None:
    torch.manual_seed(kind)
    shapes = {f"layer{i}": s for i, s in enumerate(SHAPES)}
    model = nn.ModuleDict({name: nn.Linear(n, m, bias=False) for name, (m, n) in shapes.items()})
    base = tmp_path / "base.safetensors"
    save_file(model.state_dict(), base)
    mora.inject(model, list(shapes), 2, kind, 0.1)
    for _, found in mora.layers(model):
        nn.init.normal_(found.M)
    mora.save(model, tmp_path / "adapter", 2, str(base))

    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name in shapes:
        A, B = (stored[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
        assert torch.equal(A, B)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["use_mora"] is True
    assert (config["mora_type"], config["r"], config["lora_dropout"]) == (kind, 2, 0.1)

    result = deltaw.analyze(base, tmp_path / "adapter", device="cpu")
    assert not result.failed
    table = result.to_pandas().set_index("name")
    for name, found in mora.layers(model):
        dW = found.update(torch.eye(found.base.in_features)).detach().double().numpy().T
        expected = np.linalg.svd(dW, compute_uv=False)
        values = result.spectrum(f"{name}.weight").values
        np.testing.assert_allclose(values, expected[: len(values)], atol=1e-5 * expected[0])
        assert table.loc[f"{name}.weight", "fro_norm"] == pytest.approx(np.linalg.norm(dW), rel=1e-6)
        assert table.loc[f"{name}.weight", "adapter_type"] == "mora"
