"""kohya and diffusers files: names, α, convolutions, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

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
    with pytest.raises(AdapterError, match="no LoRA factors"):
        open_adapter(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"lora_unet_x.dora_scale": torch.ones(2)}, "dora_scale.* is no LoRA factor"),
        ({"lora_unet_x.hada_w1_a": torch.ones(2, 2)}, "hada_w1_a.* is no LoRA factor"),
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
