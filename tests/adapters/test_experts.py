"""LoRA on bare parameters: which parameter, which expert, which way round."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig
from torch import nn

from deltaw.adapters import open_adapter
from deltaw.checkpoints import open_checkpoint
from deltaw.errors import AdapterError

E, H, INTER = 3, 8, 10


class Experts(nn.Module):
    def __init__(self, shapes, is_transposed=False):
        super().__init__()
        self.is_transposed = is_transposed
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))


class Net(nn.Module):
    def __init__(self, shapes, **options):
        super().__init__()
        torch.manual_seed(0)
        self.experts = Experts(shapes, **options)
        self.head = nn.Linear(H, 4)


OUTPUTS_FIRST = {"gate_up_proj": (E, 2 * INTER, H), "down_proj": (E, H, INTER)}
INPUTS_FIRST = {"gate_up_proj": (E, H, 2 * INTER), "down_proj": (E, INTER, H)}


def config(*names, **options):
    targets = [f"experts.{n}" for n in names]
    return LoraConfig(**({"r": 2, "lora_alpha": 5, "target_modules": ["head"], "target_parameters": targets} | options))


@pytest.mark.parametrize("names", [("gate_up_proj", "down_proj"), ("down_proj",), ("gate_up_proj",)])
@pytest.mark.parametrize(("shapes", "transposed"), [(OUTPUTS_FIRST, False), (INPUTS_FIRST, True)])
def test_fused_experts(check, tmp_path, shapes, transposed, names):
    routes, _ = check(Net(shapes, is_transposed=transposed), config(*names))
    assert set(routes) == {"head.weight", *(f"experts.{n}" for n in names)}
    assert set(routes.values()) == {"factored"}
    pairs = open_adapter(tmp_path / "adapter").updates(open_checkpoint(Net(shapes))).pairs
    experts = [p for p in pairs if p.name == f"experts.{names[0]}"]
    assert [p.view.part for p in experts] == ["expert 0", "expert 1", "expert 2"]
    assert [p.ft.expert for p in experts] == [0, 1, 2]


def test_square_experts_follow_the_models_layout(check):
    check(Net({"w": (E, H, H)}), config("w"))


def test_a_two_dimensional_parameter_is_one_matrix(check, tmp_path):
    check(Net({"router": (6, H)}), config("router", rank_pattern={"router": 3}))
    pair = next(
        p
        for p in open_adapter(tmp_path / "adapter").updates(open_checkpoint(Net({"router": (6, H)}))).pairs
        if p.name != "head.weight"
    )
    assert (pair.view.expert, pair.view.part, pair.ft.rank) == (None, "", 3)


def test_one_expert_is_no_stack(check):
    check(Net({"w": (1, 6, H)}), config("w"))


def test_a_target_without_its_module_is_not_that_of_every_module(check, tmp_path):
    """`target_parameters: ["down_proj"]`, which PEFT writes for a model of experts: LoRA on `head` stays its own."""
    routes, _ = check(Net(OUTPUTS_FIRST), config(target_parameters=["down_proj"]))
    assert set(routes) == {"head.weight", "experts.down_proj"}
    assert {p.name for p in open_adapter(tmp_path / "adapter").updates(None).pairs} == {"head.weight"}


def test_without_a_base_parameters_cannot_be_told_apart(check, tmp_path):
    check(Net(OUTPUTS_FIRST), config("gate_up_proj", "down_proj"))
    found = open_adapter(tmp_path / "adapter").updates(None)
    assert [p.name for p in found.pairs] == ["head.weight"]
    assert {(s.name, s.reason) for s in found.skipped} == {
        ("experts.gate_up_proj", "needs_base"),
        ("experts.down_proj", "needs_base"),
    }


def test_two_parameters_of_one_shape_are_not_guessed(check, tmp_path):
    shapes = {"a": (E, H, H), "b": (E, H, H)}
    with pytest.raises(AdapterError, match=r"fit both experts\.a and experts\.b"):
        check(Net(shapes), config("a", "b"))


def test_another_base_is_named_with_its_shapes(check, tmp_path):
    check(Net(OUTPUTS_FIRST), config("down_proj"))
    other = open_checkpoint(Net({"down_proj": (E, H + 1, INTER)}))
    with pytest.raises(AdapterError, match=r"lora_A 6×10 and lora_B 8×6 .*experts\.down_proj is 3×9×10"):
        open_adapter(tmp_path / "adapter").updates(other)


def test_experts_that_began_inside_the_base_are_skipped(check, tmp_path):
    check(Net(OUTPUTS_FIRST), config("down_proj"))
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": "pissa"}))
    with pytest.raises(AdapterError, match=r"experts\.weight: base_changed_at_init|head\.weight: base_changed_at_init"):
        open_adapter(tmp_path / "adapter").updates(open_checkpoint(Net(OUTPUTS_FIRST)))


def test_all_experts_are_read_in_one_go(check, tmp_path, monkeypatch):
    """Their factors lie interleaved in one tensor: reading it once per expert would cost experts² reads."""
    from deltaw.checkpoints import StoredHandle

    check(Net(OUTPUTS_FIRST), config("down_proj"))
    read = []
    original = StoredHandle.read
    monkeypatch.setattr(StoredHandle, "read", lambda self, rows=None: (read.append(self.name), original(self, rows))[1])
    for pair in open_adapter(tmp_path / "adapter").updates(open_checkpoint(Net(OUTPUTS_FIRST))).pairs:
        pair.ft.delta(None)
    assert len(read) == len(set(read)) == 4
