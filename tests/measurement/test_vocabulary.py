"""Which tokens a direction writes and reads: planted ones come first, above what random directions reach."""

import pytest
import torch

import deltaw
from deltaw.errors import OptionError, UnknownNameError
from tests.conftest import HIDDEN, VOCAB, pico_state, save_lora, save_single

DOWN, UP = "model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.up_proj.weight"


class Words:
    """A tokenizer that names its tokens by their numbers."""

    def decode(self, tokens):
        return f"<{tokens[0]}>"


def planted(tmp_path, name, make):
    """A base, and a fine-tune with a rank-one update that `make` gives from the base."""
    base = pico_state()
    ft = {**base, name: base[name] + make(base)}
    return deltaw.analyze(save_single(base, tmp_path / "base"), save_single(ft, tmp_path / "ft"))


def writing(token):
    """ΔW of down_proj that moves one token's logit most, behind the final norm."""
    return lambda b: torch.outer(
        b["lm_head.weight"][token] / b["model.norm.weight"], torch.randn(24, generator=torch.Generator().manual_seed(3))
    )


def reading(token):
    """ΔW of up_proj that one token's embedding meets most, behind the layer's norm."""
    return lambda b: torch.outer(
        torch.randn(24, generator=torch.Generator().manual_seed(3)),
        b["model.embed_tokens.weight"][token] / b["model.layers.1.post_attention_layernorm.weight"],
    )


@pytest.mark.parametrize(("name", "make", "role"), [(DOWN, writing, "writes"), (UP, reading, "reads")])
def test_a_planted_token_comes_first(tmp_path, name, make, role):
    result = planted(tmp_path, name, make(17))
    found = deltaw.directions(result, name, Words(), tokens=5)
    first = found[(found["direction"] == 1) & (found["place"] == 1)]
    best = first.loc[first["score"].idxmax()]
    assert (best["token_id"], best["token"], best["role"]) == (17, "<17>", role)
    assert best["score"] > best["null"]
    assert list(found["sign"].unique()) == ["+", "-"]
    table = {"writes": "lm_head.weight and model.norm.weight"}
    other = "model.embed_tokens.weight and model.layers.1.post_attention_layernorm.weight"
    assert best["through"] == table.get(role, other)


def test_a_direction_is_one_of_unit_length_through_the_norm(tmp_path):
    result = planted(tmp_path, DOWN, writing(17))
    found = deltaw.directions(result, DOWN, Words(), tokens=VOCAB)
    base = pico_state()
    row = found[(found["direction"] == 1) & (found["token_id"] == 17)]
    expected = float(base["lm_head.weight"][17].norm())  # g ⊙ u is the token's own row, scaled to length 1
    assert row["score"].abs().max() == pytest.approx(expected, rel=1e-4)
    assert found["sigma"].iloc[0] == pytest.approx(result.spectrum(DOWN).values[0], rel=1e-5)


def test_random_directions_stay_below_the_null(tmp_path):
    result = planted(tmp_path, DOWN, lambda b: torch.randn(HIDDEN, 24, generator=torch.Generator().manual_seed(5)))
    found = deltaw.directions(result, DOWN, Words(), top=8, tokens=1)
    assert (found["score"] > found["null"]).mean() <= 0.25  # 16 looks at 5 % each


def test_an_adapter_and_a_tied_head(tmp_path):
    base = pico_state()
    del base["lm_head.weight"]
    lora = save_lora(tmp_path / "lora")
    result = deltaw.analyze(save_single(base, tmp_path / "base"), lora)
    found = deltaw.directions(result, "model.layers.0.self_attn.q_proj.weight", Words())
    assert set(found["role"]) == {"reads"}
    assert found["direction"].max() == 2  # the rank of the adapter
    assert found["through"].iloc[0] == "model.embed_tokens.weight and model.layers.0.input_layernorm.weight"


def test_what_cannot_be_read_is_said(tmp_path):
    result = planted(tmp_path, DOWN, writing(3))
    with pytest.raises(UnknownNameError, match="Did you mean"):
        deltaw.directions(result, DOWN.replace("down", "dwn"), Words())
    with pytest.raises(OptionError, match="did not change"):
        deltaw.directions(result, UP, Words())
    with pytest.raises(OptionError, match="expected 1 or more"):
        deltaw.directions(result, DOWN, Words(), top=0)
    base = pico_state()
    in_memory = deltaw.analyze(base, {k: v * 1.1 for k, v in base.items()})
    with pytest.raises(OptionError, match="both sides on disk"):
        deltaw.directions(in_memory, DOWN, Words())
    ft = save_single({k: v * 1.1 for k, v in base.items()}, tmp_path / "scaled")
    scaled = deltaw.analyze(tmp_path / "base", ft)
    with pytest.raises(OptionError, match="neither writes to the residual stream nor reads"):
        deltaw.directions(scaled, "model.embed_tokens.weight", Words())
