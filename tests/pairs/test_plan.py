"""Every tensor of both sides ends in exactly one place, and only true pairs are compared."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import deltaw
from deltaw.checkpoints import Checkpoint, open_checkpoint
from deltaw.checkpoints.memory import tensor_handles
from deltaw.documents import Document
from deltaw.errors import DeltaWError, OptionError, PairingError
from deltaw.pairs.plan import plan
from deltaw.pairs.selection import Selection
from deltaw.types import Pair, Reason, matrix_key
from tests.conftest import State, changed, pico_state


def opened(state: State, **config: object) -> Checkpoint:
    return Checkpoint("x", "memory", tensor_handles(state), Document(config))


def by_name(pairs: tuple[Pair, ...]) -> dict[str, Pair]:
    return {p.key: p for p in pairs}


def reasons(found) -> dict[str, str]:
    return {s.name: s.reason for s in found.skipped}


def test_exact_names(pico: State):
    found = plan(opened(pico), opened(changed(pico)))
    assert {p.name for p in found.pairs} == set(pico)
    assert not found.skipped


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "_fsdp_wrapped_module.", "base_model.model.", "model.", "module._orig_mod."]
)
@pytest.mark.parametrize("side", ["base", "ft"])
def test_wrapper_prefixes(prefix: str, side: str, pico: State):
    wrapped = {prefix + k: v for k, v in pico.items()}
    base, ft = (wrapped, pico) if side == "base" else (pico, wrapped)
    found = plan(opened(base), opened(ft))
    assert {(p.base.name, p.name) for p in found.pairs} == set(zip(base, ft, strict=True))
    assert not found.skipped
    assert any("matched without" in note for note in found.notes)


def test_exact_names_come_before_prefixes():
    base = {"w": torch.zeros(2, 2), "module.w": torch.ones(2, 2)}
    found = plan(opened(base), opened({"module.w": torch.ones(2, 2)}))
    assert [(p.base.name, p.name) for p in found.pairs] == [("module.w", "module.w")]
    assert reasons(found) == {"w": "only_in_base"}


def test_never_guesses_between_two():
    base = {"module.w": torch.zeros(2, 2), "_orig_mod.w": torch.ones(2, 2), "a": torch.ones(1)}
    base["b"] = torch.ones(2, 2)
    found = plan(opened(base), opened({"w": torch.ones(2, 2), "a": torch.ones(1), "b": torch.ones(2, 2)}))
    assert [p.name for p in found.pairs] == ["a", "b"]


def test_one_extra_layer(pico: State):
    found = plan(opened(pico_state(layers=3)), opened(pico))
    assert {p.name for p in found.pairs} == set(pico)
    extra = {n for n in pico_state(layers=3) if ".layers.2." in n}
    assert {n for n, r in reasons(found).items() if r == "only_in_base"} == extra


def test_not_floating_shapes_and_one_sided(pico: State):
    base = pico | {"ids": torch.arange(4), "b_only": torch.ones(1), "mixed": torch.ones(3)}
    ft = pico | {"ids": torch.arange(4), "f_only": torch.ones(1), "mixed": torch.ones(3).long()}
    ft["model.norm.weight"] = torch.ones(5)
    found = plan(opened(base), opened(ft))
    assert reasons(found) == {
        "ids": "not_floating",
        "mixed": "not_floating",
        "b_only": "only_in_base",
        "f_only": "only_in_ft",
        "model.norm.weight": "shape_mismatch",
    }
    detail = next(s.detail for s in found.skipped if s.because == Reason.SHAPE_MISMATCH)
    assert "16" in detail
    assert "5" in detail


def test_tied_on_both_sides(pico: State):
    ft = changed(pico)
    for state in (pico, ft):
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    found = plan(opened(pico), opened(ft))
    assert reasons(found) == {"lm_head.weight": "tied_to model.embed_tokens.weight"}


def test_tied_on_one_side_is_two_updates(pico: State):
    ft = changed(pico)
    pico["lm_head.weight"] = pico["model.embed_tokens.weight"]
    found = plan(opened(pico), opened(ft))
    assert {p.name for p in found.pairs} == set(pico)


@pytest.mark.parametrize("absent", ["base", "ft"])
def test_tied_by_config_with_one_absent(absent: str, pico: State):
    without = {k: v for k, v in pico.items() if k != "lm_head.weight"}
    base, ft = (without, pico) if absent == "base" else (pico, without)
    found = plan(opened(base, tie_word_embeddings=True), opened(ft, tie_word_embeddings=True))
    assert reasons(found) == {"lm_head.weight": "tied_to model.embed_tokens.weight"}
    found = plan(opened(base), opened(ft))
    assert reasons(found)["lm_head.weight"].startswith("only_in_")


def test_resized_vocabulary(pico: State):
    ft = changed(pico)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        ft[name] = torch.cat([ft[name], torch.zeros(1, 16)])
    found = plan(opened(pico), opened(ft))
    pair = by_name(found.pairs)["lm_head.weight"]
    assert pair.view.crop == 40
    assert pair.shape == (40, 16)
    assert any("40" in n and "41" in n for n in found.notes)


def test_other_classes_are_no_resized_vocabulary():
    base, ft = ({"w.weight": torch.ones(4, 8), "score.weight": torch.ones(classes, 8)} for classes in (3, 2))
    assert reasons(plan(opened(base), opened(ft))) == {"score.weight": "shape_mismatch"}


def test_scales_that_are_bare_exponents_are_no_weights():
    """MXFP8: they have no sign and no fraction, and no metric of ours means anything for them."""
    base = {"w.weight": torch.randn(4, 8), "w.scales": torch.full((4, 1), 2.0).to(torch.float8_e8m0fnu)}
    ft = {"w.weight": torch.randn(4, 8), "w.scales": torch.full((4, 1), 4.0).to(torch.float8_e8m0fnu)}
    found = deltaw.analyze(base, ft)
    assert [r["name"] for r in found.rows] == ["w.weight"]
    assert [(s.name, s.reason, s.detail) for s in found.skipped] == [("w.scales", "not_floating", "float8_e8m0fnu")]


def test_filters(pico: State):
    found = plan(opened(pico), opened(pico), Selection.of(include=["mlp", "attn"], exclude=[r"layers\.1"]))
    names = {p.name for p in found.pairs}
    assert names == {n for n in pico if ("mlp" in n or "attn" in n) and "layers.1" not in n}
    assert set(reasons(found).values()) == {"excluded"}
    with pytest.raises(OptionError, match="regular expression"):
        plan(opened(pico), opened(pico), Selection.of(include=["("]))
    with pytest.raises(PairingError, match="--include"):
        plan(opened(pico), opened(pico), Selection.of(include=["nothing"]))


def test_nothing_in_common(pico: State):
    with pytest.raises(PairingError, match="no tensor in common") as caught:
        plan(opened(pico), opened({"conv.weight": torch.ones(2, 2)}))
    assert "conv.weight" in str(caught.value)


def test_experts_convolutions_and_small_dims():
    state = {
        "layers.0.mlp.experts.gate_up_proj": torch.zeros(4, 6, 8),
        "conv.weight": torch.zeros(6, 3, 2, 2),
        "conv1d.weight": torch.zeros(6, 3, 5),
        "pos_embed": torch.zeros(1, 20, 32),
        "row.weight": torch.zeros(1, 7),
        "scalar": torch.zeros(()),
        "empty": torch.zeros(0, 3),
    }
    found = plan(opened(state), opened(state))
    shapes = {p.key: p.shape for p in found.pairs}
    assert shapes == {
        **{matrix_key("layers.0.mlp.experts.gate_up_proj", f"expert {e}"): (6, 8) for e in range(4)},
        "conv.weight": (6, 12),
        "conv1d.weight": (6, 15),
        "pos_embed": (20, 32),
        "row.weight": (1, 7),
        "scalar": (1, 1),
        "empty": (0, 3),
    }


def test_conv1d_is_transposed_to_outputs_first():
    state = {"h.0.attn.c_attn.weight": torch.zeros(4, 12), "h.0.mlp.c_fc.weight": torch.zeros(4, 16)}
    for config in ({"model_type": "gpt2"}, {}):
        shapes = [p.shape for p in plan(opened(state, **config), opened(state)).pairs]
        assert shapes == [(12, 4), (16, 4)]
    linear = {"h.0.attn.c_attn.weight": torch.zeros(12, 4), "h.0.mlp.c_fc.weight": torch.zeros(16, 4)}
    for config in ({"model_type": "gpt_bigcode"}, {"model_type": "gpt2"}, {}):
        assert [p.shape for p in plan(opened(linear, **config), opened(linear)).pairs] == [(12, 4), (16, 4)]


names = st.text("ab.01", min_size=1, max_size=6)


@given(st.sets(names), st.sets(names), st.sampled_from(["", "module.", "model."]))
def test_every_tensor_ends_in_exactly_one_place(left: set[str], right: set[str], prefix: str):
    base = {prefix + n: torch.ones(2, 2) for n in left}
    ft = {n: torch.zeros(2, 2) for n in right}
    try:
        found = plan(opened(base), opened(ft))
    except PairingError:
        return
    ends = [("base", p.base.name) for p in found.pairs] + [("ft", p.name) for p in found.pairs]
    ends += [("base", s.name) for s in found.skipped if s.because == Reason.ONLY_IN_BASE]
    ends += [("ft", s.name) for s in found.skipped if s.because == Reason.ONLY_IN_FT]
    assert sorted(ends) == sorted([("base", n) for n in base] + [("ft", n) for n in ft])


def test_state_dicts_open(pico: State):
    assert plan(open_checkpoint(pico), open_checkpoint(changed(pico))).pairs


def test_a_tensor_named_like_a_part_is_another_matrix():
    """`moe.w[expert 0]` beside the experts of `moe.w`: each has its own row and spectrum."""
    g = torch.Generator().manual_seed(0)
    base = {"moe.w": torch.randn(2, 5, 20, generator=g), "moe.w[expert 0]": torch.zeros(5, 20)}
    ft = {"moe.w": base["moe.w"] + 1, "moe.w[expert 0]": torch.ones(5, 20)}
    found = deltaw.analyze(base, ft, jobs=1)
    assert len(found.rows) == len(found.spectra) == 3
    assert found.spectrum("moe.w[expert 0]").values[0] == pytest.approx(10)
    assert sorted(found.spectra) == ['["moe.w", "expert 0"]', '["moe.w", "expert 1"]', "moe.w[expert 0]"]


def test_an_update_that_is_stored_twice_is_refused(tmp_path: Path):
    g = torch.Generator().manual_seed(0)
    state = {}
    for at, size in (("base_model.model.x", 1.0), ("base_model.model.model.x", 100.0)):
        state[f"{at}.lora_A.weight"] = size * torch.randn(2, 6, generator=g)
        state[f"{at}.lora_B.weight"] = torch.randn(8, 2, generator=g)
    save_file(state, tmp_path / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["x"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(about))
    with pytest.raises(DeltaWError, match=r"x\.weight"):
        deltaw.analyze({"x.weight": torch.randn(8, 6, generator=g)}, tmp_path)
