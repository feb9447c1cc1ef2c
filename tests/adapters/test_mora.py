"""MoRA against a forward pass of the identity, written as the method is described: compress, multiply, decompress."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from deltaw.adapters import open_adapter
from deltaw.adapters.mora import KINDS, Mora, repeated, rotated, width
from deltaw.checkpoints import open_checkpoint
from deltaw.checkpoints.memory import MemoryHandle
from deltaw.errors import AdapterError


def forward(x, M, outputs, kind):
    """One input at a time through the layer, with explicit loops: no code in common with deltaw."""
    inputs, r = len(x), M.shape[0]
    blocks = math.ceil(inputs / r)
    if kind == 6:
        padded = torch.cat([x, x[: blocks * r - inputs]])
        out = []
        for i in range(blocks):
            piece = padded[i * r : (i + 1) * r]
            turned = torch.empty(r, dtype=x.dtype)
            for j in range(r // 2):
                angle = i * 10000.0 ** (-2 * j / r)
                a, b = piece[j], piece[j + r // 2]
                turned[j] = a * math.cos(angle) - b * math.sin(angle)
                turned[j + r // 2] = b * math.cos(angle) + a * math.sin(angle)
            out.append(M @ turned)
        whole = torch.cat(out)[:outputs]
        return whole.repeat(math.ceil(outputs / len(whole)))[:outputs]
    small = torch.zeros(r, dtype=x.dtype)
    if kind in (1, 4):
        for j in range(blocks * r):
            small[j % r] += x[j % inputs]
    else:
        per, longer = divmod(inputs, r)
        start = 0
        for slot in range(r):
            stop = start + per + (slot < longer)
            small[slot] = x[start:stop].sum()
            start = stop
    y = M @ small
    if kind in (1, 3):
        return torch.stack([y[j % r] for j in range(outputs)])
    per, longer = divmod(outputs, r)
    return torch.cat([y[slot].repeat(per + (slot < longer)) for slot in range(r)])


def square(r, seed=0):
    return torch.randn(r, r, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("outputs", "inputs", "r"),
    [(12, 12, 4), (12, 20, 4), (20, 12, 4), (13, 17, 4), (17, 13, 6), (30, 9, 6), (9, 30, 6), (7, 9, 8), (5, 40, 10)],
)
def test_against_the_forward_pass_of_the_identity(kind, outputs, inputs, r):
    M = square(r)
    update = Mora("w", (outputs, inputs), MemoryHandle("m", M), kind)
    identity = torch.eye(inputs, dtype=torch.float64)
    expected = torch.stack([forward(e, M, outputs, kind) for e in identity], dim=1)
    assert torch.allclose(update.delta(None), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
@pytest.mark.parametrize(("outputs", "inputs", "r"), [(12, 12, 4), (12, 20, 4), (30, 6, 6)])
def test_published_singular_values_where_the_width_divides(kind, outputs, inputs, r):
    """σ(ΔW) = √(in·out)/r̂ · σ(M)."""
    M = square(r)
    found = torch.linalg.svdvals(repeated(M, outputs, inputs, kind))[:r]
    assert torch.allclose(found, math.sqrt(inputs * outputs) / r * torch.linalg.svdvals(M), rtol=1e-12)


def test_published_singular_values_of_the_rotated_blocks():
    """Block diagonal, each σ(M) as often as there are blocks."""
    M = square(6)
    found = torch.linalg.svdvals(rotated(M, 24, 24))
    assert torch.allclose(found, torch.linalg.svdvals(M).repeat_interleave(4), rtol=1e-12)


def write(folder, state, kind, r=2, both=True, **config):
    tensors = {}
    for i, (name, w) in enumerate(state.items()):
        M = square(width(w.shape[0], w.shape[1], r, kind), i).float()
        prefix = "base_model.model." + name.removesuffix(".weight")
        tensors[f"{prefix}.lora_A.weight"] = M
        if both:
            tensors[f"{prefix}.lora_B.weight"] = M.clone()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": r, "lora_alpha": 32, "use_mora": True, "mora_type": kind} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return tensors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("both", [True, False])
def test_an_adapter_of_the_fork(tmp_path, kind, both):
    """Both factors hold the same M, which is not squared; α is ignored."""
    state = {"a.q_proj.weight": torch.randn(12, 16), "a.down_proj.weight": torch.randn(10, 30)}
    tensors = write(tmp_path, state, kind, both=both)
    opened = open_adapter(tmp_path)
    assert opened.format == "peft mora"
    pairs = opened.updates(open_checkpoint(state)).pairs
    assert len(pairs) == 2
    for pair in pairs:
        M = tensors[f"base_model.model.{pair.name.removesuffix('.weight')}.lora_A.weight"].double()
        m, n = state[pair.name].shape
        expected = torch.stack([forward(e, M, m, kind) for e in torch.eye(n, dtype=torch.float64)], dim=1)
        assert torch.allclose(pair.ft.delta(None), expected, atol=1e-12)
        assert (pair.ft.adapter_type, pair.ft.rank, pair.ft.scaling) == ("mora", M.shape[0], 1.0)
        assert not pair.ft.factored


def test_bad_mora(tmp_path):
    state = {"a.q_proj.weight": torch.randn(12, 16)}
    write(tmp_path, state, 1)
    opened = open_adapter(tmp_path)
    with pytest.raises(AdapterError, match="needs_base"):
        opened.updates(None)
    with pytest.raises(
        AdapterError, match=r"M of a\.q_proj\.weight is 7×7, but rank 2 on the base's 40×40 gives 13×13"
    ):
        opened.updates(open_checkpoint({"a.q_proj.weight": torch.randn(40, 40)}))
    write(tmp_path, state, 1, mora_type=5)
    with pytest.raises(AdapterError, match="mora_type is 5"):
        open_adapter(tmp_path).updates(open_checkpoint(state))
    save_file({"base_model.model.a.q_proj.lora_A.weight": torch.ones(2, 16)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"square lora_A for a\.q_proj, found 2×16"):
        open_adapter(tmp_path).updates(open_checkpoint(state))
