"""The largest entry of a product, against the product."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from deltaw.delta.largest_entry import largest_product


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=60)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 70), st.integers(0, 10**6))
def test_small_products(m, n, r, seed):
    B, A = normal(m, r, seed=seed), normal(r, n, seed=seed + 1)
    assert largest_product(B, A) == pytest.approx(float((B @ A).abs().max()), rel=1e-12)


@pytest.mark.parametrize("kind", ["gaussian", "signs", "heavy", "one", "unbalanced"])
def test_several_blocks(kind):
    B, A = normal(2500, 8), normal(8, 9000, seed=1)
    if kind == "signs":  # all norms are equal: nothing can be pruned
        B, A = B.sign(), A.sign()
    if kind == "heavy":
        B, A = B**5, A**5
    if kind == "one":
        B[1700, 3], A[3, 8123] = 100, -100
    if kind == "unbalanced":
        B, A = B * 10.0 ** torch.arange(8), A / (10.0 ** torch.arange(8))[:, None]
    assert largest_product(B, A) == pytest.approx(float((B @ A).abs().max()), rel=1e-12)


def test_nothing_to_multiply():
    assert largest_product(torch.zeros(3, 0).double(), torch.zeros(0, 4).double()) == 0
    assert largest_product(torch.zeros(3, 2).double(), torch.zeros(2, 4).double()) == 0


def test_a_vocabulary_squared_is_hardly_multiplied():
    """4·10¹⁰ entries: multiplied out they would take minutes, and 300 GB."""
    B, A = normal(200_000, 16), normal(16, 200_000, seed=1)
    with FlopCounterMode(display=False) as counter:
        found = largest_product(B, A)
    assert counter.get_total_flops() < 0.001 * 2 * 16 * 200_000**2
    assert found >= float((B[:2000] @ A[:, :2000]).abs().max())
