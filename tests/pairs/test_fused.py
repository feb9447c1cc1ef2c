"""q, k and v (gate and up) in one matrix on one side and apart on the other: each part is compared with its own."""

import json

import pytest
import torch
from safetensors.torch import save_file

import deltaw
from deltaw.errors import PairingError

SIZES = {"q_proj": 8, "k_proj": 4, "v_proj": 4, "gate_proj": 10, "up_proj": 10}
ATTENTION, MLP = "model.layers.0.self_attn.", "model.layers.0.mlp."
FUSED = {f"{ATTENTION}qkv_proj": ("q_proj", "k_proj", "v_proj"), f"{MLP}gate_up_proj": ("gate_proj", "up_proj")}


def apart(seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    out = {"model.norm.weight": torch.ones(6)}
    for leaf, rows in SIZES.items():
        at = ATTENTION if leaf[0] in "qkv" else MLP
        out |= {
            f"{at}{leaf}.weight": torch.randn(rows, 6, generator=g),
            f"{at}{leaf}.bias": torch.randn(rows, generator=g),
        }
    return out


def fused(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = {"model.norm.weight": state["model.norm.weight"]}
    for name, leaves in FUSED.items():
        at = name.rpartition(".")[0] + "."
        for kind in ("weight", "bias"):
            out[f"{name}.{kind}"] = torch.cat([state[f"{at}{leaf}.{kind}"] for leaf in leaves])
    return out


def norms(result: deltaw.Analysis) -> list[float]:
    return sorted(r["fro_norm"] for r in result.rows)


@pytest.mark.parametrize("way", ["base apart", "fine-tune apart", "behind a prefix"])
def test_each_part_is_compared_with_its_own(way):
    base, ft = apart(0), apart(1)
    expected = norms(deltaw.analyze(base, ft))
    sides = {
        "base apart": (base, fused(ft)),
        "fine-tune apart": (fused(base), ft),
        "behind a prefix": (base, {f"policy.{n}": t for n, t in fused(ft).items()}),
    }[way]
    result = deltaw.analyze(*sides)
    assert norms(result) == pytest.approx(expected, rel=1e-9)
    assert result.summary.coverage.share == 1
    assert not result.skipped
    if way == "base apart":
        q = next(r for r in result.rows if r["part"] == "q" and r["ndim"] == 2)
        assert (q["name"], q["rows"]) == (f"{ATTENTION}qkv_proj.weight", 8)


def test_sizes_that_do_not_add_up_or_fit_twice_are_not_cut():
    ft = fused(apart(1))
    base = {n: t for n, t in apart(0).items() if "mlp" not in n}
    with pytest.raises(PairingError, match="nearest names"):
        deltaw.analyze({n: t[:3] if "q_proj" in n else t for n, t in base.items()}, ft)
    other = {n.replace("layers.0", "layers.1"): t for n, t in base.items()}
    sizes = {"q_proj": 4, "k_proj": 8, "v_proj": 4}
    other = {n: torch.ones(sizes.get(n.split(".")[-2], len(t)), *t.shape[1:]) for n, t in other.items()}
    with pytest.raises(PairingError, match="nearest names"):
        deltaw.analyze(base | other, ft)


@pytest.mark.parametrize("merge", [fused, dict], ids=["merged fused", "merged apart"])
@pytest.mark.parametrize("lie", [fused, dict], ids=["base fused", "base apart"])
def test_an_adapter_of_parts_on_either_base(tmp_path, lie, merge):
    """LoRA trained on q and v, on a base and a merge that keep them fused or apart; a merge that lacks v is found."""
    base, g = apart(0), torch.Generator().manual_seed(2)
    merged, tensors = dict(base), {}
    for leaf, rows in {"q_proj": 8, "k_proj": 4, "v_proj": 4}.items():
        A, B = torch.randn(2, 6, generator=g), torch.randn(rows, 2, generator=g)
        tensors |= {f"base_model.model.{ATTENTION}{leaf}.lora_{x}.weight": t for x, t in (("A", A), ("B", B))}
        merged[f"{ATTENTION}{leaf}.weight"] = base[f"{ATTENTION}{leaf}.weight"] + B @ A
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj", "k_proj", "v_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    result = deltaw.analyze(lie(base), tmp_path)
    expected = [float((merged[n] - base[n]).double().norm()) for n in base if not torch.equal(merged[n], base[n])]
    assert norms(result) == pytest.approx(sorted(expected), rel=1e-5)
    assert result.summary.coverage.share == 1
    assert deltaw.verify(lie(base), tmp_path, merge(merged)).passed
    wrong = merged | {f"{ATTENTION}v_proj.weight": base[f"{ATTENTION}v_proj.weight"]}
    assert not deltaw.verify(lie(base), tmp_path, merge(wrong)).passed


def test_the_attention_of_torch_is_cut_too():
    """`nn.MultiheadAttention` keeps q, k and v in `in_proj_weight`, a parameter without a module of its own."""
    base, ft = apart(0), apart(1)
    for state in (base, ft):
        state |= {
            f"{ATTENTION}{k}_proj.{x}": torch.cat([state[f"{ATTENTION}{k}_proj.{x}"]] * 2)
            for k in "kv"
            for x in ("weight", "bias")
        }
    expected = norms(deltaw.analyze(base, ft))
    names = {f"{ATTENTION}qkv_proj.{x}": f"{ATTENTION}in_proj_{x}" for x in ("weight", "bias")}
    result = deltaw.analyze(base, {names.get(n, n): t for n, t in fused(ft).items()})
    assert norms(result) == pytest.approx(expected, rel=1e-9)


def test_codegen_is_not_cut_like_others(tmp_path):
    """GPT-J, which CodeGen was made of, keeps them apart under the same names; CodeGen's lie in four blocks."""
    for side, state in (("base", apart(0)), ("ft", fused(apart(1)))):
        (tmp_path / side).mkdir()
        save_file(state, tmp_path / side / "model.safetensors")
        (tmp_path / side / "config.json").write_text(json.dumps({"model_type": "codegen" if side == "ft" else "gptj"}))
    result = deltaw.analyze(tmp_path / "base", tmp_path / "ft")
    assert {r["name"] for r in result.rows if "self_attn" in r["name"]} == set()
    assert result.summary.coverage.share < 0.9


def test_what_wrappers_and_libraries_left_in_names():
    """A PEFT model's `base_layer` without factors; spectral norm before and after it became a parametrisation."""
    base = {"l.q_proj.weight": torch.ones(3, 3), "l.c.weight_orig": torch.ones(2, 3), "l.norm.weight": torch.ones(3)}
    ft = {
        "l.q_proj.base_layer.weight": torch.full((3, 3), 2.0),
        "l.c.parametrizations.weight.original": torch.full((2, 3), 2.0),
        "l.norm.weight": torch.ones(3),
    }
    result = deltaw.analyze(base, ft)
    assert norms(result) == pytest.approx([0, 6**0.5, 3])
    assert not result.skipped
