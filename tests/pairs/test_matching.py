"""Names of two sides that mean one tensor are joined by rules that say so, and nothing is guessed."""

import re

import pytest
import torch

import deltaw
from deltaw.errors import OptionError, PairingError
from deltaw.pairs.matching import join
from deltaw.pairs.renames import Rename, known, renamed, suggestion, towers
from tests.conftest import State, changed, pico_state

PICO = pico_state()


def shapes(state: State):
    return {n: tuple(t.shape) for n, t in state.items()}


def assert_whole(base: State, ft: State, **options) -> deltaw.Analysis:
    """Every tensor of both sides in one row, with the right ΔW, whatever it is called."""
    result = deltaw.analyze(base, ft, **options)
    assert not result.skipped, result.skipped
    assert result.summary.coverage.share == 1
    assert len(result.rows) == len(base)
    want = sorted(float((a.double() - b.double()).norm()) for a, b in zip(base.values(), ft.values(), strict=True))
    assert sorted(r["fro_norm"] for r in result.rows) == pytest.approx(want, rel=1e-9)
    return result


@pytest.mark.parametrize("side", ["base", "ft"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda n: re.sub(r"(layers\.\d+)\.", r"\1._checkpoint_wrapped_module.", n),
        lambda n: "_fsdp_wrapped_module." + re.sub(r"(layers\.\d+)\.", r"\1._fsdp_wrapped_module._orig_mod.", n),
        lambda n: "_forward_module." + n,
        lambda n: "module.module." + n,
        lambda n: "model._orig_mod." + n,
        lambda n: "base_model.model._orig_mod." + n,
        lambda n: n.replace("model.", "model.module.", 1),
        *(lambda n, p=p: p + n for p in ("model.", "net.", "policy.", "bert.", "transformer.", "vit.", "a.b.c.")),
    ],
)
def test_wrappers_and_one_constant_prefix(wrap, side):
    ft = changed(PICO)
    wrapped = {wrap(n): t for n, t in (PICO if side == "base" else ft).items()}
    assert_whole(*((wrapped, ft) if side == "base" else (PICO, wrapped)))


def test_a_model_without_its_head():
    """transformers' own: `BertModel` against `BertForMaskedLM`; the head is of one side alone."""
    base = {n.removeprefix("model."): t for n, t in PICO.items() if n != "lm_head.weight"}
    result = deltaw.analyze(base, changed(PICO))
    assert [(s.name, s.reason) for s in result.skipped] == [("lm_head.weight", "only_in_ft")]
    assert result.summary.coverage.share == 1


def test_two_prefixes_are_not_chosen_between():
    ft = changed(PICO)
    both = {f"{who}.{n}": t for who in ("student", "teacher") for n, t in ft.items()}
    with pytest.raises(PairingError, match="--rename"):
        deltaw.analyze(PICO, both)
    found = deltaw.analyze(PICO, both, rename=r"^student\.=")
    assert found.summary.coverage.share == 1
    assert {r["name"] for r in found.rows} == {f"student.{n}" for n in PICO}


def test_a_prefix_whose_shapes_differ_is_none():
    joined = join({f"layers.{i}.w": (4, 8) for i in range(3)}, {f"a.layers.{i}.w": (8, 16) for i in range(3)})
    assert not joined.pairs


def test_the_prefix_that_explains_more_wins():
    left = {"layers.0.q.weight": (4, 4), "norm.weight": (4,)}
    right = {"lm.layers.0.q.weight": (4, 4), "lm.norm.weight": (4,), "vision.norm.weight": (4,)}
    assert join(left, right).pairs == {"lm.layers.0.q.weight": "layers.0.q.weight", "lm.norm.weight": "norm.weight"}


def test_one_name_that_ends_alike_is_an_accident():
    left = {"a.weight": (4, 4), "dense.weight": (4, 4), "b.weight": (4, 4)}
    right = {"a.weight": (4, 4), "head.dense.weight": (4, 4), "c.weight": (4, 4)}
    assert join(left, right).pairs == {"a.weight": "a.weight"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bert.LayerNorm.gamma", "bert.LayerNorm.weight"),
        ("bert.layer_norm.beta", "bert.layer_norm.bias"),
        ("conv.weight_g", "conv.parametrizations.weight.original0"),
        ("conv.weight_v", "conv.parametrizations.weight.original1"),
        ("l.0.block_sparse_moe.experts.3.w1.weight", "l.0.mlp.experts.3.gate_proj.weight"),
        ("l.0.block_sparse_moe.experts.3.w3.weight", "l.0.mlp.experts.3.up_proj.weight"),
        ("l.0.block_sparse_moe.experts.3.w2.weight", "l.0.mlp.experts.3.down_proj.weight"),
        ("l.0.block_sparse_moe.gate.weight", "l.0.mlp.gate.weight"),
    ],
)
def test_known_renames(old, new):
    assert known(old) == known(new) == new
    plain = {"plain.weight": torch.randn(4, 4)}
    base, ft = {**plain, old: torch.randn(4, 4)}, {"plain.weight": torch.randn(4, 4), new: torch.randn(4, 4)}
    assert_whole(base, ft)
    assert_whole(ft, base)


def test_a_layer_scale_called_gamma_is_no_norm():
    assert known("stages.0.layers.1.gamma") == "stages.0.layers.1.gamma"


@pytest.mark.parametrize(
    ("hub", "memory"),
    [
        ("language_model.model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("vision_tower.vision_model.encoder.x.weight", "model.vision_tower.encoder.x.weight"),
        ("multi_modal_projector.linear_1.weight", "model.multi_modal_projector.linear_1.weight"),
        ("visual.blocks.0.attn.qkv.weight", "model.visual.blocks.0.attn.qkv.weight"),
        ("model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.up_proj.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_towers(hub, memory):
    assert towers(hub) == towers(memory) == memory


@pytest.mark.parametrize("kind", ["llava", "qwen"])
def test_models_that_see_under_published_names_and_in_memory(kind):
    text = {"embed_tokens.weight": (40, 16), "layers.0.self_attn.q_proj.weight": (16, 16), "norm.weight": (16,)}
    see = "vision_tower" if kind == "llava" else "visual"
    base = {f"{'language_model.model' if kind == 'llava' else 'model'}.{n}": torch.randn(s) for n, s in text.items()}
    base |= {f"{see}.blocks.0.weight": torch.randn(16, 16), "lm_head.weight": torch.randn(40, 16)}
    ft = {(f"model.language_model.{n}" if n in text else n): torch.randn(s) for n, s in text.items()}
    ft |= {f"model.{see}.blocks.0.weight": torch.randn(16, 16), "lm_head.weight": torch.randn(40, 16)}
    assert_whole(base, ft)
    assert_whole(ft, base)


# --- experts ---------------------------------------------------------------------------------------------------------

E, INNER, H = 3, 12, 20


def experts(seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    sizes = {"gate_proj": (INNER, H), "up_proj": (INNER, H), "down_proj": (H, INNER)}
    return {n: torch.randn(E, *s, generator=g) for n, s in sizes.items()}


def apart(t, at="model.layers.0.mlp.experts", names=("gate_proj", "up_proj", "down_proj")) -> State:
    return {f"{at}.{e}.{new}.weight": t[n][e] for e in range(E) for n, new in zip(t, names, strict=True)}


def stacked(t, at="model.layers.0.mlp.experts", turned=False, interleaved=False) -> State:
    fused = torch.stack([t["gate_proj"], t["up_proj"]], 2).reshape(E, 2 * INNER, H) if interleaved else None
    fused = torch.cat([t["gate_proj"], t["up_proj"]], 1) if fused is None else fused
    out = {f"{at}.gate_up_proj": fused, f"{at}.down_proj": t["down_proj"]}
    return {n: x.mT.contiguous() for n, x in out.items()} if turned else out


MIXTRAL = {"at": "model.layers.0.block_sparse_moe.experts", "names": ("w1", "w3", "w2")}
STORED = {
    "apart": (apart, {}, {}),
    "mixtral": (apart, MIXTRAL, {}),
    "stacked": (stacked, {}, {"model_type": "qwen3_moe"}),
    "inputs first": (stacked, {"turned": True}, {"model_type": "llama4"}),
    "interleaved": (stacked, {"turned": True, "interleaved": True}, {"model_type": "gpt_oss"}),
    "one kind each": (lambda t: {f"model.layers.0.mlp.experts.{n}": x for n, x in t.items()}, {}, {"model_type": "x"}),
}


def as_side(way: str, seed: int):
    from deltaw.checkpoints import Checkpoint
    from deltaw.checkpoints.memory import tensor_handles
    from deltaw.documents import Document

    store, options, config = STORED[way]
    state = store(experts(seed), **options) | {"model.layers.0.mlp.gate.weight": torch.ones(E, H) * (seed + 1)}
    return Checkpoint("x", "memory", tensor_handles(state), Document(config))


@pytest.mark.parametrize("ft_way", STORED)
@pytest.mark.parametrize("base_way", STORED)
def test_experts_stacked_or_apart(base_way, ft_way):
    a, b = experts(0), experts(1)
    result = deltaw.analyze(as_side(base_way, 0), as_side(ft_way, 1))
    assert not result.skipped
    assert result.summary.coverage.share == 1
    delta = {n: b[n].double() - a[n].double() for n in a}
    if base_way == ft_way and ft_way not in {"apart", "mixtral"}:  # as it is stored
        assert len(result.rows) == 1 + (E * 3 if ft_way == "one kind each" else E * 2)
        return
    found = sorted(r["fro_norm"] for r in result.rows if "experts" in r["name"])
    assert found == pytest.approx(sorted(float(d[e].norm()) for d in delta.values() for e in range(E)), rel=1e-9)
    for row in result.rows:
        if "experts" in row["name"]:
            assert (row["rows"], row["cols"]) == (
                (H, INNER) if "down" in row["name"] or ".w2." in row["name"] else (INNER, H)
            )
            assert row["kind"] == "mlp"


def test_the_parts_of_a_stack_have_names():
    rows = deltaw.analyze(apart(experts(0)), stacked(experts(1))).rows
    at = "model.layers.0.mlp.experts"
    want = {(f"{at}.gate_up_proj", f"expert {e} {p}") for e in range(E) for p in ("gate", "up")}
    assert {(r["name"], r["part"]) for r in rows} == want | {(f"{at}.down_proj", f"expert {e}") for e in range(E)}
    rows = deltaw.analyze(stacked(experts(0)), apart(experts(1))).rows
    assert {(r["name"], r["part"]) for r in rows} == {(n, "") for n in apart(experts(0))}


def test_an_expert_that_is_missing_has_a_reason():
    ft = {n: t for n, t in apart(experts(1)).items() if ".1.up_proj" not in n}
    result = deltaw.analyze(stacked(experts(0)), ft)
    assert [(s.name, s.reason) for s in result.skipped] == [
        ("model.layers.0.mlp.experts.gate_up_proj[expert 1 up]", "only_in_base")
    ]
    c = result.summary.coverage
    assert c.numbers - c.compared_numbers == INNER * H


# --- orientation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["base", "ft"])
def test_siblings_settle_a_square_matrix(side):
    """nanoGPT's `Linear` against the hub's `Conv1D`."""
    g = torch.Generator().manual_seed(0)
    sizes = {"attn.c_attn": (48, 16), "attn.c_proj": (16, 16), "mlp.c_fc": (64, 16), "mlp.c_proj": (16, 64)}
    linear = {f"h.0.{n}.weight": torch.randn(s, generator=g) for n, s in sizes.items()}
    linear["wte.weight"] = torch.randn(16, 16, generator=g)  # a square table of tokens stays as it is
    ft = {n: t + 0.01 * torch.randn(t.shape, generator=g) for n, t in linear.items()}
    turned = {n: t.T.contiguous() if ".c_" in n else t for n, t in (linear if side == "base" else ft).items()}
    pair = (turned, ft) if side == "base" else (linear, turned)
    rows = {r["name"]: r for r in deltaw.analyze(*pair).rows}
    for name, t in linear.items():
        delta = (ft[name] - t).double()
        assert rows[name]["fro_norm"] == pytest.approx(float(delta.norm()), rel=1e-6)
        assert (rows[name]["rows"], rows[name]["cols"]) == tuple(t.shape)
        assert rows[name]["magnitude_change"] == pytest.approx(
            float((ft[name].double().norm(dim=1) - t.double().norm(dim=1)).abs().mean()), rel=1e-5
        )


def test_a_square_matrix_whose_siblings_disagree_is_not_compared():
    base = {"a.0.x.weight": torch.randn(4, 8), "a.1.x.weight": torch.randn(4, 8), "a.2.x.weight": torch.randn(6, 6)}
    ft = {n: torch.randn(t.shape) for n, t in base.items()} | {"a.1.x.weight": torch.randn(8, 4)}
    result = deltaw.analyze(base, ft)
    assert [(s.name, s.reason) for s in result.skipped] == [("a.2.x.weight", "shape_mismatch")]
    assert "orientation" in result.skipped[0].detail


# --- --rename --------------------------------------------------------------------------------------------------------


def test_rename_is_for_names_that_differ_by_a_rule():
    ft = {n.replace("model.layers.", "enc.block_").replace("self_attn", "sa"): t for n, t in changed(PICO).items()}
    with pytest.raises(PairingError, match=r"nearest names.*--rename"):
        deltaw.analyze({n: t for n, t in PICO.items() if "layers" in n}, {n: t for n, t in ft.items() if "block" in n})
    rules = [r"^enc\.block_(\d+)=model.layers.\1", r"\.sa\.=.self_attn."]
    result = deltaw.analyze(PICO, ft, rename=rules)
    assert result.summary.coverage.share == 1
    assert {r["name"] for r in result.rows} == set(ft)
    assert list(result.options["rename"]) == rules
    assert any("18 names" in note for note in result.notes)
    again = deltaw.analyze(PICO, ft, rename={r"^enc\.block_(\d+)": r"model.layers.\1", r"\.sa\.": ".self_attn."})
    assert again.rows[0]["fro_norm"] == result.rows[0]["fro_norm"]


def test_the_names_of_meta_are_not_called_a_rename_away():
    """Queries and keys lie in another order of rows there, so that a rename would give a wrong number."""
    native = {
        n.replace("model.", "").replace("self_attn", "attention").replace("q_proj", "wq").replace("k_proj", "wk"): t
        for n, t in changed(PICO).items()
        if "q_proj" in n or "k_proj" in n
    }
    base = {n: t for n, t in PICO.items() if "q_proj" in n or "k_proj" in n}
    with pytest.raises(PairingError, match=r"names of Meta's.*rows in another order.*convert_llama") as caught:
        deltaw.analyze(base, native)
    assert "--rename" not in str(caught.value)
    rules = [r"^layers=model.layers", r"attention\.w([qk])\.=self_attn.\1_proj."]
    assert any(
        "rows of queries and keys in another order" in n for n in deltaw.analyze(base, native, rename=rules).notes
    )


def test_no_rename_is_offered_between_tensors_of_other_sizes():
    with pytest.raises(PairingError, match="nearest names") as caught:
        deltaw.analyze({"a.weight": torch.ones(4, 4)}, {"b.c.weight": torch.ones(3, 5)})
    assert "--rename" not in str(caught.value)


def test_the_suggestion_of_the_error_does_it():
    base = {f"model.layers.{i}.w.weight": torch.randn(8, 8) for i in range(2)}
    ft = {f"gpt.layers.{i}.w.weight": torch.randn(8, 8) for i in range(2)}
    with pytest.raises(PairingError) as caught:
        deltaw.analyze(base, ft)
    option = re.search(r"--rename '(.*?)'", str(caught.value))[1]
    assert len(deltaw.analyze(base, ft, rename=option).rows) == 2
    assert suggestion("a.b.c.weight", "x.b.c.weight") == "--rename '^a=x'"
    assert suggestion("G.b.c.weight", "b.c.weight") == r"--rename '^G\.='"


@pytest.mark.parametrize("given", ["no equals", "=x", "(=x", r"a=\2", r"(a)=\g<b>"])
def test_malformed_renames(given):
    with pytest.raises(OptionError, match="--rename"):
        Rename.parse(given)


def test_a_rename_may_not_give_two_names_at_once():
    with pytest.raises(OptionError, match="one name"):
        renamed(["a.w", "b.w"], ["[ab]=c"])
    assert renamed(["a.w"], ["(?=a)a=b"])[0] == {"a.w": "b.w"}


def test_rename_reaches_below_what_wrappers_add(tmp_path):
    import json

    from safetensors.torch import save_file

    at = "base_model.model.net.layers.0.self_attn.q_proj"
    g = torch.Generator().manual_seed(0)
    A, B = torch.randn(2, 16, generator=g), torch.randn(16, 2, generator=g)
    save_file({f"{at}.lora_A.weight": A, f"{at}.lora_B.weight": B}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    (row,) = deltaw.analyze(PICO, tmp_path, rename=r"^net\.=model.").rows
    assert row["name"] == "model.layers.0.self_attn.q_proj.weight"
    assert row["fro_norm"] == pytest.approx(float((B.double() @ A.double()).norm()), rel=1e-12)
