from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deltaw.errors import CheckpointError, OptionError
from deltaw.study import arms, mora
from deltaw.study.plan import Arm

from .conftest import DORA, FULL, LORA, MORA1, MORA6


@pytest.fixture(autouse=True)
def quiet():  # type: ignore[no-untyped-def]
    with arms.quiet():
        yield


def test_full_trains_everything_with_its_dropout(base: Path) -> None:
    plain = arms.open_base(base, FULL)
    dropped = arms.open_base(base, Arm("d", "full", (1e-3,), attention_dropout=0.1))
    assert plain.config.attention_dropout == 0
    assert dropped.model.layers[0].self_attn.attention_dropout == 0.1
    assert arms.trainable(arms.prepare(dropped, FULL)) == sum(p.numel() for p in plain.parameters())
    assert all(p.dtype == torch.float32 for p in plain.parameters())


@pytest.mark.parametrize("arm", [LORA, DORA, MORA1, MORA6])
def test_adapters_are_beside_every_linear_layer_but_the_head(base: Path, arm: Arm) -> None:
    model = arms.prepare(arms.open_base(base, arm), arm)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    layers = {n.split(".layers.")[1].split(".lora_")[0].removesuffix(".M") for n in trained}
    wanted = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    assert layers == {f"{i}.{w}" for i in range(2) for w in wanted}
    assert not any("lm_head" in n or "embed" in n for n in trained)


def test_lora_has_the_scaling_of_the_paper(base: Path) -> None:
    model = arms.prepare(arms.open_base(base), LORA)
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 4, 0.05)


@pytest.mark.parametrize("arm", [FULL, LORA, MORA6])
def test_saved_checkpoints_name_their_base(base: Path, tmp_path: Path, arm: Arm) -> None:
    model = arms.prepare(arms.open_base(base), arm)
    arms.save(model, arm, tmp_path / "c", "the/base")
    if arm.method == "full":
        assert set(load_file(tmp_path / "c" / "model.safetensors")) == set(model.state_dict())
    else:
        config = json.loads((tmp_path / "c" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "the/base"


def test_any_method_of_peft_by_its_name(base: Path) -> None:
    arm = Arm("LoHa", "peft", (1e-3,), options={"peft_type": "loha", "r": 2})
    model = arms.prepare(arms.open_base(base), arm)
    assert any("hada_" in n for n, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peft_type": "LORRA"}, "LORRA' is unknown; expected one of .*LORA"),
        ({"peft_type": "LOHA", "rank": 3}, "unexpected keyword.*LoHaConfig"),
        ({"peft_type": "LOHA", "target_modules": ["absent"]}, "does not fit the model"),
    ],
)
def test_a_bad_method_is_explained(base: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        arms.prepare(arms.open_base(base), Arm("x", "peft", (1e-3,), options=options))


def test_a_base_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a causal language model"):
        arms.open_base(tmp_path)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        arms.open_tokenizer(tmp_path)


def test_no_attention_dropout_is_no_arm(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arms, "DROPOUTS", ("something_else",))
    with pytest.raises(OptionError, match="llama has no attention dropout"):
        arms.open_base(base, Arm("d", "full", (1e-3,), attention_dropout=0.1))


def test_mora_layers_stand_where_the_linear_ones_did(base: Path) -> None:
    model = arms.open_base(base)
    names = arms.linear_layers(model)
    arms.prepare(model, MORA6)
    assert [n for n, _ in mora.layers(model)] == names
