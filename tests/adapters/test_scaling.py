"""Patterns are matched as peft matches them, whatever they are."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from deltaw.adapters.scaling import rank, scale
from deltaw.documents import Document
from deltaw.errors import AdapterError

PARTS = st.sampled_from(["model", "layers", "0", "1", "11", "self_attn", "q_proj", "xq_proj", "proj"])
PATHS = st.lists(PARTS, min_size=1, max_size=5).map(".".join)
PATTERNS = st.one_of(PATHS, PATHS.map(lambda p: "^" + p), PARTS.map(lambda p: f".*{p}"), st.just(r"layers\.(0|1)\..+"))


@given(st.dictionaries(PATTERNS, st.integers(1, 64), max_size=4), PATHS)
def test_lookup_is_pefts(pattern, path):
    assert rank(Document({"rank_pattern": pattern}), path) == pattern.get(get_pattern_key(pattern.keys(), path), 8)


@given(st.integers(1, 256), st.floats(0.1, 1000), st.booleans())
def test_scale(r, alpha, rslora):
    config = {"r": r, "lora_alpha": alpha, "use_rslora": rslora}
    assert scale(Document(config), "a") == alpha / (math.sqrt(r) if rslora else r)


def test_defaults_are_pefts():
    assert (rank(Document(), "a"), scale(Document(), "a")) == (8, 1.0)


@pytest.mark.parametrize("alpha", ["8", True, [8], float("nan"), 10**400])
def test_an_alpha_that_is_no_number(alpha):
    with pytest.raises(AdapterError, match=r"x: 'lora_alpha' is .*; expected a number"):
        scale(Document({"lora_alpha": alpha}, "x", AdapterError), "a")
    with pytest.raises(AdapterError, match=r"x: alpha_pattern: 'a' is .*; expected a number"):
        scale(Document({"alpha_pattern": {"a": alpha}}, "x", AdapterError), "a")
