"""The precision of the numbers: whatever file they lie in, whatever grid they were quantised to."""

import math

import pytest
import torch

from deltaw.tensors.bits import STORED, rounded, ulp
from deltaw.tensors.numbers import NF4, Grid, finest, numbers

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def weights(m=64, n=256, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 0.02 * torch.randn(m, n, generator=g) * torch.exp(0.3 * torch.randn(m, 1, generator=g))


@pytest.mark.parametrize("file", [FP64, FP32, FP16, BF16], ids=str)
@pytest.mark.parametrize("held", [FP64, FP32, FP16, BF16], ids=str)
def test_a_wider_file_holds_the_same_numbers(held, file):
    if STORED[held].fraction > STORED[file].fraction:
        return
    found = numbers((weights().double() * (1 + 1e-9)).to(held).to(file))
    assert found.name == str(held).removeprefix("torch.")
    assert found.precision.fraction == STORED[held].fraction
    assert found.grid is None


def test_small_float16_numbers_have_fewer_bits_and_are_float16():
    w = weights() * 3e-3  # many below float16's smallest normal number
    assert numbers(w.half()).name == numbers(w.half().float()).name == "float16"


def test_numbers_beyond_float16_are_none():
    w = weights().half().float()
    w[3, 4] = 2.0**-40
    assert numbers(w).name == "float32"


def test_one_entry_with_all_bits_is_enough():
    w = weights(512, 512).bfloat16().float()
    assert numbers(w).name == "bfloat16"
    w[-1, -1] = 1 + 2.0**-23
    assert numbers(w).name == "float32"


def test_round_numbers_are_no_grid():
    for w in (
        torch.ones(64),
        torch.zeros(64, 64),
        torch.arange(12.0).reshape(3, 4),
        torch.eye(200),
        torch.ones(64, 64),
    ):
        assert numbers(w).name == "bfloat16"
        assert numbers(w).grid is None
    assert numbers(torch.zeros(0, 4)).name == "float32"


@pytest.mark.parametrize("scale", [1.0, 64.0])
@pytest.mark.parametrize("file", [FP32, BF16, FP16], ids=str)
def test_float8_with_a_scale_of_two(file, scale):
    for dtype in (E4M3, E5M2):
        found = numbers(((weights() * scale).to(dtype).float() / scale).to(file))
        assert found.name == str(dtype).removeprefix("torch.")
        assert found.precision.fraction == STORED[dtype].fraction
    assert numbers(weights().to(E4M3)).name == "float8_e4m3fn"


def evenly(w, bits, size):
    x = w.reshape(-1, size)
    step = x.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (torch.round(x / step) * step).reshape(w.shape)


def coded(w, size=64):
    x = w.reshape(-1, size)
    largest = x.abs().amax(1, keepdim=True)
    codes = torch.tensor(NF4)
    return (codes[(x[..., None] / largest[..., None] - codes).abs().argmin(-1)] * largest).reshape(w.shape)


def scaled_float8(w, size):
    x = w.reshape(-1, size)
    scale = 448 / x.abs().amax(1, keepdim=True)
    return ((x * scale).to(E4M3).float() / scale).reshape(w.shape)


@pytest.mark.parametrize("file", [FP32, BF16], ids=str)
@pytest.mark.parametrize(
    ("name", "quantise"),
    [
        ("int8", lambda w: evenly(w, 8, 1024)),
        ("int8", lambda w: evenly(w, 8, 128)),
        ("int8", lambda w: evenly(w, 8, w.numel())),
        ("int4", lambda w: evenly(w, 4, 1024)),
        ("int4", lambda w: evenly(w, 4, 64)),
        ("int4", lambda w: evenly(w, 4, 128)),
        ("nf4", coded),
        ("float8_e4m3fn", lambda w: scaled_float8(w, 1024)),
        ("float8_e4m3fn", lambda w: scaled_float8(w, w.numel())),
    ],
)
def test_a_grid_is_seen_in_a_file_of_floats(name, quantise, file):
    found = numbers(quantise(weights(64, 1024)).to(file))
    assert found.name == name
    assert found.grid is not None
    assert numbers(quantise(weights(64, 1024)).to(file).T).name == name  # in the order of the memory


@pytest.mark.parametrize("n", [64, 256, 1024, 4096])
@pytest.mark.parametrize("kind", ["normal", "uniform", "student", "half zeros", "90 % zeros", "sparse rows"])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_native_weights_are_on_no_grid(n, kind, dtype):
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        w = weights(32, n, seed)
        if kind == "uniform":
            w = torch.rand(32, n, generator=g) - 0.5
        if kind == "student":
            w = w / torch.randn(3, 32, n, generator=g).square().mean(0).sqrt()
        if kind.endswith("zeros"):
            w = w * (torch.rand(32, n, generator=g) < (0.5 if "half" in kind else 0.1))
        if kind == "sparse rows":
            w = w * (torch.rand(32, 1, generator=g) < 0.3)
        found = numbers(w.to(dtype))
        assert found.grid is None
        assert found.name == str(dtype).removeprefix("torch.")


def test_the_finest_of_several_blocks():
    w = weights()
    coarse, fine = w.bfloat16().float(), w
    assert finest(finest(None, coarse), fine).name == "float32"
    assert finest(finest(None, fine), coarse).name == "float32"
    assert finest(finest(None, coarse), coarse).name == "bfloat16"
    assert finest(finest(None, evenly(w, 4, 64)), fine).grid is None


def test_rounding_to_a_precision_is_the_cast():
    w = torch.cat([weights().flatten(), weights().flatten() * 1e-6, torch.tensor([0.0, -0.0, 1.00390625, 1.01171875])])
    for dtype in (BF16, FP16, FP32):
        before = w.double()
        assert torch.equal(rounded(before, STORED[dtype]), w.to(dtype).double())
        assert torch.equal(before, w.double())  # not in place


def test_the_ulp_is_that_of_the_numbers():
    w = weights().bfloat16()
    assert torch.equal(ulp(w.float(), STORED[BF16]), ulp(w))
    half = weights().half()
    assert torch.equal(ulp(half.float(), STORED[FP16]), ulp(half))
    assert float(ulp(torch.tensor([1e-9]), STORED[FP16])) == 2.0**-24


def test_grids_name_their_groups():
    assert numbers(evenly(weights(64, 1024), 4, 64)).grid == Grid("even", (1, 64))
    assert math.prod(numbers(evenly(weights(64, 1024), 8, 1024)).grid.shape) == 1024
