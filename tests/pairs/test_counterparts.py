"""A merge is found under other names, in other pieces, the other way round, or with more tokens."""

import json

import pytest
import torch
from safetensors.torch import save_file

import deltaw
from tests.conftest import pico_state
from tests.pairs.test_matching import INNER, E, H, apart, experts, stacked

Q = "model.layers.0.self_attn.q_proj"


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write(folder, tensors, **config):
    folder.mkdir(exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


@pytest.fixture
def lora(tmp_path):
    at = f"base_model.model.{Q}"
    A, B = normal(2, 16), normal(16, 2, seed=1)
    return write(tmp_path / "a", {f"{at}.lora_A.weight": A, f"{at}.lora_B.weight": B}), 2 * B @ A


def merged_with(base, delta):
    return dict(base) | {f"{Q}.weight": base[f"{Q}.weight"] + delta}


def other_names(name: str) -> str:
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


@pytest.mark.parametrize(
    "call",
    [
        other_names,
        lambda n: n.replace("layers.0.", "layers.0._checkpoint_wrapped_module."),
        lambda n: f"policy.{n}",
    ],
)
def test_other_names(call, lora):
    base = pico_state()
    path, delta = lora
    right, wrong = merged_with(base, delta), merged_with(base, 2 * delta)
    assert deltaw.verify(base, path, {call(n): t for n, t in right.items()}).passed
    assert not deltaw.verify(base, path, {call(n): t for n, t in wrong.items()}).passed


def test_a_padded_vocabulary(lora):
    base = pico_state()
    path, delta = lora
    merged = merged_with(base, delta)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        merged[name] = torch.cat([merged[name], normal(2, 16)])
    found = deltaw.verify(base, path, merged)
    assert found.passed
    assert [t.detail for t in found.tensors if "embed" in t.name] == ["(2 rows that the base does not have)"]
    merged["lm_head.weight"][3] += 1
    assert not deltaw.verify(base, path, merged).passed


def test_the_other_way_round(tmp_path):
    base = {"h.0.attn.c_attn.weight": normal(16, 48), "h.0.attn.c_proj.weight": normal(16, 16, seed=1)}
    at = "base_model.model.h.0.attn.c_proj"
    A, B = normal(2, 16, seed=2), normal(16, 2, seed=3)
    tensors = {f"{at}.lora_A.weight": A, f"{at}.lora_B.weight": B}
    path = write(tmp_path / "a", tensors, target_modules=["c_proj"], fan_in_fan_out=True)
    merged = {n: t.T.contiguous() for n, t in base.items()}
    merged["h.0.attn.c_proj.weight"] = merged["h.0.attn.c_proj.weight"] + 2 * B @ A
    assert deltaw.verify(base, path, merged).passed
    merged["h.0.attn.c_proj.weight"] += 0.01
    assert not deltaw.verify(base, path, merged).passed


AT = "model.layers.0.mlp.experts"


def both(kind: str, tmp_path):
    """An adapter of all experts (`stacked`) or of single ones (`apart`), and the experts after it."""
    t = experts(0)
    out = {n: x.clone() for n, x in t.items()}
    tensors = {}
    if kind == "apart":
        for e in range(E):
            A, B = normal(2, H, seed=e), normal(INNER, 2, seed=10 + e)
            tensors |= {f"base_model.model.{AT}.{e}.up_proj.lora_{x}.weight": f for x, f in (("A", A), ("B", B))}
            out["up_proj"][e] += 2 * B @ A
        return write(tmp_path / "a", tensors, target_modules=["up_proj"]), t, out
    A, B = normal(2 * E, H), normal(2 * INNER, 2 * E, seed=1)
    tensors = {f"base_model.model.{AT}.lora_A.weight": A, f"base_model.model.{AT}.lora_B.weight": B}
    for e in range(E):
        delta = 2 * B.reshape(2 * INNER, 2, E)[:, :, e] @ A.reshape(E, 2, H)[e]
        out["gate_proj"][e] += delta[:INNER]
        out["up_proj"][e] += delta[INNER:]
    path = write(tmp_path / "a", tensors, target_modules=[], target_parameters=["mlp.experts.gate_up_proj"])
    return path, t, out


@pytest.mark.parametrize("kind", ["apart", "stacked"])
@pytest.mark.parametrize("base_way", [apart, stacked])
@pytest.mark.parametrize("merged_way", [apart, stacked])
def test_experts_in_other_pieces(kind, base_way, merged_way, tmp_path):
    path, before, after = both(kind, tmp_path)
    base, merged = base_way(before), merged_way(after)
    assert deltaw.verify(base, path, merged).passed
    assert not deltaw.verify(base, path, merged_way(before)).passed
    name = next(n for n in merged if "down" in n)
    merged[name] = merged[name] + 1
    assert not deltaw.verify(base, path, merged).passed
    rows = deltaw.analyze(base, path).rows
    want = {n: after[n].double() - before[n].double() for n in ("gate_proj", "up_proj")}
    total = sum(float(d.square().sum()) for d in want.values())
    assert sum(r["fro_norm"] ** 2 for r in rows) == pytest.approx(total, rel=1e-5)
