"""kohya and diffusers files: names, α, convolutions, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

import deltaw
from deltaw.adapters import is_adapter, open_adapter
from deltaw.checkpoints import open_checkpoint
from deltaw.errors import AdapterError

PIPELINE = {
    "unet.down_blocks.0.attn.to_q.weight": (6, 8),
    "unet.down_blocks.0.attn.to_out.0.weight": (8, 6),
    "unet.down_blocks.0.conv.weight": (5, 4, 3, 3),
    "unet.proj_in.weight": (8, 4, 1, 1),
    "text_encoder.text_model.layers.0.fc1.weight": (10, 6),
    "text_encoder_2.text_model.layers.0.fc1.weight": (12, 6),
}


def pipeline():
    g = torch.Generator().manual_seed(0)
    return {n: torch.randn(s, generator=g) for n, s in PIPELINE.items()}


def factors(shape, r=3, seed=1, kernel_in_down=True):
    g = torch.Generator().manual_seed(seed)
    down, up = torch.randn((r, *shape[1:]), generator=g), torch.randn((shape[0], r), generator=g)
    return down, up.reshape(shape[0], r, *([1] * (len(shape) - 2)))


def deltas(path, state):
    found = open_adapter(path).updates(open_checkpoint(state))
    return {p.name: p.ft.delta(None).B @ p.ft.delta(None).A for p in found.pairs}, found.skipped


def test_kohya(tmp_path):
    """α/r, mangled names of every component, linear and convolution."""
    state, tensors, expected = pipeline(), {}, {}
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    for i, (name, w) in enumerate(state.items()):
        component, rest = name.removesuffix(".weight").split(".", 1)
        key = f"{prefixes[component]}_{rest.replace('.', '_')}"
        down, up = factors(w.shape, seed=i)
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.5)}
        expected[name] = 0.5 * (up.double().flatten(1) @ down.double().flatten(1))
    save_file(tensors, tmp_path / "style.safetensors")
    assert is_adapter(tmp_path / "style.safetensors")
    assert open_adapter(tmp_path / "style.safetensors").format == "kohya"
    found, skipped = deltas(tmp_path / "style.safetensors", state)
    assert found.keys() == expected.keys()
    assert not skipped
    for name, want in expected.items():
        assert torch.allclose(found[name], want, rtol=1e-12), name
    # a bare UNet: the text encoders' modules are nowhere, and said so
    unet = {n.removeprefix("unet."): w for n, w in state.items() if n.startswith("unet.")}
    found, skipped = deltas(tmp_path / "style.safetensors", unet)
    assert len(found) == 4
    assert [s.reason for s in skipped] == ["only_in_ft"] * 2


def test_kohya_on_a_text_encoder_of_transformers_5(tmp_path):
    """Its modules are not behind `text_model.` any more, which kohya's keys still name."""
    state = {
        "text_encoder.encoder.layers.0.self_attn.q_proj.weight": torch.randn(8, 8),
        "unet.conv_in.weight": torch.randn(4, 3, 3, 3),
    }
    down, up = factors((8, 8), seed=0)
    key = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    save_file({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}, tmp_path / "a.safetensors")
    found, skipped = deltas(tmp_path / "a.safetensors", state)
    assert not skipped
    (name,) = found
    assert torch.allclose(found[name], up.double() @ down.double(), rtol=1e-12)


def test_kohya_convolution_with_a_core(tmp_path):
    """LoCon: up (out, r), core (r, r, 3, 3), down (r, in)."""
    g = torch.Generator().manual_seed(2)
    up, mid, down = (torch.randn(s, generator=g) for s in ((5, 3, 1, 1), (3, 3, 3, 3), (3, 4, 1, 1)))
    key = "lora_unet_down_blocks_0_conv"
    parts = {"lora_up.weight": up, "lora_mid.weight": mid, "lora_down.weight": down, "alpha": torch.tensor(3.0)}
    save_file({f"{key}.{k}": v for k, v in parts.items()}, tmp_path / "a.safetensors")
    found, _ = deltas(tmp_path / "a.safetensors", pipeline())
    expected = torch.einsum("or,rshw,si->oihw", up[:, :, 0, 0].double(), mid.double(), down[:, :, 0, 0].double())
    assert torch.allclose(found["unet.down_blocks.0.conv.weight"], expected.flatten(1), rtol=1e-10)


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("to_q.lora_A.weight", "to_q.lora_B.weight"),
        ("to_q.lora_A.default_0.weight", "to_q.lora_B.default_0.weight"),
        ("to_q.lora.down.weight", "to_q.lora.up.weight"),
        ("to_q.lora_linear_layer.down.weight", "to_q.lora_linear_layer.up.weight"),
        ("processor.to_q_lora.down.weight", "processor.to_q_lora.up.weight"),
    ],
)
def test_every_spelling_of_diffusers(tmp_path, down, up):
    A, B = factors((6, 8))
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_file({f"unet.down_blocks.0.attn.{down}": A, f"unet.down_blocks.0.attn.{up}": B}, path)
    for place in (path, tmp_path):
        assert is_adapter(place)
        found, _ = deltas(place, pipeline())
        assert torch.allclose(found["unet.down_blocks.0.attn.to_q.weight"], B.double() @ A.double())
    alone = open_adapter(path).updates(None).pairs
    assert [p.name for p in alone] == ["unet.down_blocks.0.attn.to_q.weight"]


NATIVE = ("blocks.0.attn.q", "blocks.1.attn.q")


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "transformer."])
def test_the_prefix_of_comfyui_on_any_base(tmp_path, prefix):
    """`diffusion_model.` before the names of the model itself, of a whole checkpoint, and of a pipeline; no α is 1."""
    A, B = factors((6, 8))
    tensors = {
        f"diffusion_model.{n}.lora_{x}.weight": t for n in NATIVE for x, t in (("A", A.clone()), ("B", B.clone()))
    }
    save_file(tensors, tmp_path / "a.safetensors")
    found, skipped = deltas(tmp_path / "a.safetensors", {f"{prefix}{n}.weight": torch.randn(6, 8) for n in NATIVE})
    assert found.keys() == {f"{prefix}{n}.weight" for n in NATIVE}
    assert not skipped
    assert all(torch.allclose(d, B.double() @ A.double(), rtol=1e-12) for d in found.values())


@pytest.mark.parametrize(
    ("key", "module", "weight", "bias"),
    [("blocks.0.norm", "blocks.0.norm", "diff", "diff_b"), ("lora_unet_norm", "unet.norm", "w_norm", "b_norm")],
)
def test_differences_beside_the_factors(tmp_path, key, module, weight, bias):
    """What is stored as a difference is added as it is, whatever α."""
    g = torch.Generator().manual_seed(3)
    own = {weight: torch.randn(8, generator=g), bias: torch.randn(8, generator=g)}
    A, B = factors((6, 8))
    q = "lora_unet_q" if "_" in key else "blocks.0.q"
    factor = {f"{q}.lora_down.weight": A, f"{q}.lora_up.weight": B, f"{q}.alpha": torch.tensor(1.5)}
    save_file({f"{key}.{leaf}": t for leaf, t in own.items()} | factor, tmp_path / "a.safetensors")
    base = {f"{module}.weight": torch.ones(8), f"{module}.bias": torch.zeros(8)}
    base[f"{'unet.' if '_' in key else 'blocks.0.'}q.weight"] = torch.randn(6, 8, generator=g)
    frame = deltaw.analyze(open_checkpoint(base), tmp_path / "a.safetensors").to_pandas().set_index("name")
    assert frame.fro_norm[f"{module}.weight"] == pytest.approx(float(own[weight].double().norm()), rel=1e-7)
    assert frame.fro_norm[f"{module}.bias"] == pytest.approx(float(own[bias].double().norm()), rel=1e-7)
    assert len(frame) == 3


def test_a_difference_of_a_matrix_and_one_that_does_not_fit(tmp_path):
    diff = torch.randn(6, 8, generator=torch.Generator().manual_seed(4))
    save_file({"diffusion_model.q.diff": diff, "diffusion_model.k.diff": diff.clone()}, tmp_path / "a.safetensors")
    base = {"q.weight": torch.randn(6, 8), "k.weight": torch.randn(6, 8)}
    pairs = open_adapter(tmp_path / "a.safetensors").updates(open_checkpoint(base)).pairs
    assert all(torch.equal(p.ft.delta(None), diff.double()) for p in pairs)
    with pytest.raises(AdapterError, match=r"adds 6×8 numbers to q\.weight, which is 5×8 in"):
        open_adapter(tmp_path / "a.safetensors").updates(open_checkpoint(base | {"q.weight": torch.randn(5, 8)}))


def test_dora_as_diffusers_saves_it(tmp_path):
    A, B = factors((6, 8))
    W = torch.randn(6, 8, generator=torch.Generator().manual_seed(5)).double()
    m = torch.rand(6) + 1
    parts = {"lora_A.weight": A, "lora_B.weight": B, "lora_magnitude_vector": m}
    save_file({f"transformer.q.{k}": v for k, v in parts.items()}, tmp_path / "a.safetensors")
    pair = open_adapter(tmp_path / "a.safetensors").updates(open_checkpoint({"transformer.q.weight": W})).pairs[0]
    V = W + B.double() @ A.double()
    expected = m.double()[:, None] * V / V.norm(dim=1, keepdim=True) - W
    assert torch.allclose(pair.ft.delta(W), expected, rtol=1e-12)


def test_a_bundled_embedding_has_its_reason(tmp_path):
    A, B = factors((6, 8))
    key = "lora_transformer_blocks_0"
    parts = {f"{key}.lora_down.weight": A, f"{key}.lora_up.weight": B, "bundle_emb.word.clip_l": torch.ones(2, 4)}
    save_file(parts, tmp_path / "a.safetensors")
    found, skipped = deltas(tmp_path / "a.safetensors", {"transformer.blocks.0.weight": torch.randn(6, 8)})
    assert list(found) == ["transformer.blocks.0.weight"]
    assert [(s.name, s.reason) for s in skipped] == [("bundle_emb.word.clip_l", "only_in_ft")]


def test_a_module_that_finds_no_place_leaves_its_likes_unknown(tmp_path):
    """Of what the base calls otherwise nothing is known; other sizes and other parts of the model are unchanged."""
    A, B = factors((6, 8))
    keys = ("lora_unet_q", "lora_unet_unheard_of", "lora_te1_x")
    save_file(
        {f"{k}.lora_{x}.weight": t for k in keys for x, t in (("down", A.clone()), ("up", B.clone()))},
        tmp_path / "a.safetensors",
    )
    sizes = {"q": (6, 8), "k": (6, 8), "mlp": (16, 8)}
    base = {f"unet.{n}.weight": torch.randn(s) for n, s in sizes.items()}
    coverage = deltaw.analyze(base, tmp_path / "a.safetensors").summary.coverage
    assert (coverage.compared_numbers, coverage.numbers) == (6 * 8 + 16 * 8, 2 * 6 * 8 + 16 * 8)


@pytest.mark.parametrize(
    ("leaf", "method"), [("hada_w1_a", "LoHa"), ("lokr_w1", "LoKr"), ("oft_blocks", "OFT"), ("dora_scale", "DoRA")]
)
def test_other_methods_of_lycoris_are_named(tmp_path, leaf, method):
    path = tmp_path / "a.safetensors"
    save_file({f"lycoris_q.{leaf}": torch.ones(2, 2), "lycoris_q.alpha": torch.tensor(1.0)}, path)
    with pytest.raises(AdapterError, match=f"{leaf}' is not a LoRA factor, it belongs to {method}.* give the merged"):
        deltaw.analyze(pipeline(), path)


def test_diffusers_metadata_holds_the_scale(tmp_path):
    A, B = factors((6, 8))
    name = "unet.down_blocks.0.attn.to_q"
    config = {"unet.r": 3, "unet.lora_alpha": 12, "unet.alpha_pattern": {"attn.to_q": 6}}
    tensors = {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps(config)})
    pair = open_adapter(tmp_path / "a.safetensors").updates(open_checkpoint(pipeline())).pairs[0]
    assert pair.ft.scaling == 2
    save_file(tensors, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": "{"})
    with pytest.raises(AdapterError, match="not valid JSON"):
        open_adapter(tmp_path / "a.safetensors")


def test_a_full_checkpoint_is_no_adapter(tmp_path):
    save_file(pipeline(), tmp_path / "model.safetensors")
    assert not is_adapter(tmp_path / "model.safetensors")
    assert not is_adapter(tmp_path)
    assert not is_adapter(tmp_path / "absent")
    (tmp_path / "text.safetensors").write_text("no header")
    assert not is_adapter(tmp_path / "text.safetensors")
    with pytest.raises(AdapterError, match="not LoRA factors"):
        open_adapter(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"lora_unet_x.dora_scale": torch.ones(2)}, "dora_scale.* is not a LoRA factor"),
        ({"lora_unet_x.hada_w1_a": torch.ones(2, 2)}, "hada_w1_a.* is not a LoRA factor"),
        ({"lora_unet_y.lora_down.weight": torch.ones(2, 2)}, r"lora_unet_y has no lora_up \(B\)"),
        ({"lora_unet_y.alpha": torch.tensor(1.0)}, "lora_unet_y has alpha but no factors"),
        (
            {
                "lora_unet_proj_in.lora_down.weight": torch.ones(2, 9),
                "lora_unet_proj_in.lora_up.weight": torch.ones(8, 2),
            },
            r"proj_in as 8×9, but unet\.proj_in\.weight is 8×4×1×1",
        ),
        (
            {
                "lora_unet_proj_in.lora_down.weight": torch.ones(2, 4),
                "lora_unet_proj_in.lora_up.weight": torch.ones(8, 3),
            },
            "2×4 and 8×3, which do not multiply",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path, extra, message):
    A, B = factors((6, 8))
    key = "lora_unet_down_blocks_0_attn_to_q"
    save_file({f"{key}.lora_down.weight": A, f"{key}.lora_up.weight": B} | extra, tmp_path / "a.safetensors")
    with pytest.raises(AdapterError, match=message) as caught:
        open_adapter(tmp_path / "a.safetensors").updates(open_checkpoint(pipeline()))
    assert "\n" not in str(caught.value)
