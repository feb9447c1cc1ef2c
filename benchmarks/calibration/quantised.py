"""Quantised storage: the noise that the codes predict against the true one, and what stands above its edge.

Gaussian weights, Student's t(4) and rows of log-normal scale are rounded to every format, those of GGUF by its own
package where it writes them.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import gguf
import torch
from safetensors.torch import save_file
from torch import Tensor

import deltaw
from benchmarks.calibration.blocks import BLOCKS, quantise
from benchmarks.calibration.rows import Row, rate
from deltaw.checkpoints import QuantisedHandle, open_checkpoint
from deltaw.delta.difference import difference
from deltaw.tensors.quantisers import E2M1, NF4
from deltaw.types import Pair

STEM = "model.layers.0.mlp.up_proj."
NAME = f"{STEM}weight"
KINDS = ("Gaussian", "Student t(4)", "rows of log-normal scale")
SHAPE = (384, 512)
GGUF_NAME = "blk.0.ffn_up.weight"
State = dict[str, Tensor]


def weights(kind: str, seed: int, shape: tuple[int, int] = SHAPE) -> Tensor:
    """Weights of one kind, (m, n)."""
    g = torch.Generator().manual_seed(seed)
    w = 0.02 * torch.randn(*shape, generator=g)
    if kind == KINDS[1]:
        w /= torch.randn(4, *shape, generator=g).square().mean(0).sqrt()
    if kind == KINDS[2]:
        w *= torch.exp(torch.randn(shape[0], 1, generator=g))
    return w


def packed(codes: Tensor, bits: int) -> Tensor:
    """Unsigned codes as words, from the lowest bits up."""
    per = 32 // bits
    words = torch.zeros(codes.shape[0], codes.shape[1] // per, dtype=torch.int64)
    for i in range(per):
        words |= codes[:, i::per].long() << (bits * i)
    return words.to(torch.uint32)


def fp8_rows(w: Tensor) -> State:
    """E4M3, a scale per row."""
    scale = w.abs().amax(1, keepdim=True) / 448
    return {NAME: (w / scale).to(torch.float8_e4m3fn), f"{NAME}_scale": scale}


def fp8_blocks(w: Tensor) -> State:
    """E4M3, a scale per block of 128 × 128."""
    m, n = w.shape
    blocks = w.reshape(m // 128, 128, n // 128, 128)
    scale = blocks.abs().amax((1, 3)) / 448
    q = (blocks / scale[:, None, :, None]).reshape(m, n).to(torch.float8_e4m3fn)
    return {NAME: q, f"{NAME}_scale_inv": scale}


def mxfp8(w: Tensor) -> State:
    """E4M3 by powers of two."""
    groups = w.reshape(len(w), -1, 32)
    e = groups.abs().amax(-1).log2().floor() - 8
    q = (groups / torch.exp2(e)[..., None]).clamp(-448, 448).reshape(w.shape).to(torch.float8_e4m3fn)
    return {NAME: q, f"{NAME}_scale": (e + 127).to(torch.uint8)}


def e2m1(x: Tensor) -> Tensor:
    """Codes of four-bit floats, the low nibble first."""
    values = torch.tensor(E2M1)
    codes = torch.bucketize(x.abs(), (values[1:] + values[:-1]) / 2) + 8 * (x < 0)
    return (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)


def mxfp4(w: Tensor) -> State:
    """E2M1 by powers of two."""
    groups = w.reshape(len(w), -1, 32)
    e = groups.abs().amax(-1).log2().floor() - 2
    codes = e2m1((groups / torch.exp2(e)[..., None]).reshape(w.shape))
    return {f"{NAME}_packed": codes, f"{NAME}_scale": (e + 127).to(torch.uint8)}


def nvfp4(w: Tensor) -> State:
    """E2M1 with E4M3 scales per 16 and one scale over all."""
    groups = w.reshape(len(w), -1, 16)
    overall = 448 * 6 / w.abs().max()
    scale = (groups.abs().amax(-1) / 6 * overall).to(torch.float8_e4m3fn)
    codes = e2m1((groups * overall / scale.float()[..., None]).reshape(w.shape))
    return {f"{NAME}_packed": codes, f"{NAME}_scale": scale, f"{NAME}_global_scale": overall[None]}


def nf4(w: Tensor) -> State:
    """Bitsandbytes' NF4 in blocks of 64."""
    blocks = w.reshape(-1, 64)
    absmax, code = blocks.abs().amax(-1), torch.tensor(NF4)
    codes = torch.bucketize(blocks / absmax[:, None], (code[1:] + code[:-1]) / 2).flatten()
    state = {"blocksize": 64, "shape": [*w.shape], "quant_type": "nf4"}
    return {
        NAME: (codes[0::2] << 4 | codes[1::2]).to(torch.uint8)[:, None],
        f"{NAME}.absmax": absmax,
        f"{NAME}.quant_map": code,
        f"{NAME}.quant_state.bitsandbytes__nf4": torch.tensor([*json.dumps(state).encode()], dtype=torch.uint8),
    }


def symmetric(bits: int, group: int, share: float = 1.0) -> Callable[[Tensor], State]:
    """compressed-tensors' integers; `share` below 1 clips the largest."""

    def encode(w: Tensor) -> State:
        half = 2 ** (bits - 1)
        groups = w.reshape(len(w), -1, group or w.shape[1])
        scale = share * groups.abs().amax(-1) / (half - 0.5)
        codes = (groups / scale[..., None]).round().clamp(-half, half - 1).reshape(w.shape) + half
        words = packed(codes, bits).view(torch.int32)
        return {f"{NAME}_packed": words, f"{NAME}_scale": scale, f"{NAME}_shape": torch.tensor(w.shape)}

    return encode


def with_zeros(w: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Int4 with zero points, groups of 128, to nearest: codes, scales and zeros; `share` below 1 clips the largest."""
    groups = w.reshape(len(w), -1, 128)
    low, high = share * groups.amin(-1), share * groups.amax(-1)
    scale = ((high - low) / 15).half().float()
    zero = (-low / scale).round().clamp(0, 15)
    codes = (groups / scale[..., None] + zero[..., None]).round().clamp(0, 15).reshape(w.shape)
    return codes, scale, zero


def gptq(w: Tensor) -> State:
    """GPTQ's storage of int4 with zero points."""
    codes, scale, zero = with_zeros(w)
    return {
        f"{STEM}qweight": packed(codes, 4).view(torch.int32).T.contiguous(),
        f"{STEM}qzeros": packed((zero.T - 1).remainder(16), 4).view(torch.int32),
        f"{STEM}scales": scale.T.half().contiguous(),
        f"{STEM}g_idx": (torch.arange(w.shape[1]) // 128).int(),
    }


def awq(share: float = 1.0) -> Callable[[Tensor], State]:
    """AWQ's storage of the same: eight outputs to a word, in its own order."""

    def words(codes: Tensor) -> Tensor:
        return packed(codes.reshape(len(codes), -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]].flatten(1), 4).view(torch.int32)

    def encode(w: Tensor) -> State:
        codes, scale, zero = with_zeros(w, share)
        scales = scale.T.half().contiguous()
        return {f"{STEM}qweight": words(codes.T), f"{STEM}qzeros": words(zero.T), f"{STEM}scales": scales}

    return encode


def mlx(w: Tensor) -> State:
    """MLX's affine int4, groups of 64: the end that is further from zero is met exactly, with a step of either sign."""
    groups = w.reshape(len(w), -1, 64)
    low, high = groups.amin(-1), groups.amax(-1)
    below = low.abs() > high.abs()
    step = torch.where(below, high - low, low - high) / 15
    edge = torch.where(below, low, high)
    whole = (edge / step).round()
    step = torch.where(whole != 0, edge / whole, step).half()
    edge = torch.where(whole != 0, edge, 0.0).half()
    codes = ((groups - edge.float()[..., None]) / step.float()[..., None]).round().clamp(0, 15).reshape(w.shape)
    return {NAME: packed(codes, 4), f"{STEM}scales": step, f"{STEM}biases": edge}


STATES: Mapping[str, Callable[[Tensor], State]] = {
    "FP8, rows": fp8_rows,
    "FP8, blocks": fp8_blocks,
    "MXFP8": mxfp8,
    "MXFP4": mxfp4,
    "NVFP4": nvfp4,
    "NF4": nf4,
    "int8, rows": symmetric(8, 0),
    "int4 g128": symmetric(4, 128),
    "int4 g32": symmetric(4, 32),
    "int4 g32, clipped": symmetric(4, 32, 0.85),
    "int4 g128, clipped": symmetric(4, 128, 0.85),
    "int8, rows, clipped": symmetric(8, 0, 0.85),
    "GPTQ int4 g128": gptq,
    "AWQ int4 g128": awq(),
    "AWQ int4 g128, clipped": awq(0.85),
    "MLX int4 g64": mlx,
}
CONFIGS = {"MLX int4 g64": {"quantization": {"group_size": 64, "bits": 4}}}
GGUF = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", *BLOCKS)
CODEBOOKS = frozenset({"MXFP4", "NVFP4", "NF4", "IQ4_NL"})
SCHEMES = (*STATES, *GGUF)


def rounded(w: Tensor, scheme: str, folder: Path) -> object:
    """The weights in a scheme, as something that is opened."""
    if scheme in CONFIGS:
        save_file(STATES[scheme](w), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(CONFIGS[scheme]), encoding="utf-8")
        return folder
    if scheme in STATES:
        return STATES[scheme](w)
    path = folder / "m.gguf"
    kind = gguf.GGMLQuantizationType[scheme]
    writer = gguf.GGUFWriter(path, "mpt")
    codes = quantise(w.numpy(), scheme) if scheme in BLOCKS else gguf.quantize(w.numpy(), kind)
    writer.add_tensor(GGUF_NAME, codes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def trial(kind: str, scheme: str, seed: int, size: float = 0.0) -> tuple[float, int]:
    """The predicted size of the rounding over the true one, and the rank above its edge.

    Args:
        kind: Of the weights.
        scheme: Of the storage.
        seed: Of both.
        size: Of a rank-16 update that is rounded with the weights, as a share of them.
    """
    w = weights(kind, seed)
    g = torch.Generator().manual_seed(seed + 1)
    update = torch.randn(SHAPE[0], 16, generator=g) @ torch.randn(16, SHAPE[1], generator=g)
    whole = w + update * (size * float(w.norm() / update.norm()))
    with tempfile.TemporaryDirectory() as folder:
        stored = rounded(whole, scheme, Path(folder))
        name = GGUF_NAME if scheme in GGUF else NAME
        handle = open_checkpoint(stored).tensors[name]
        assert isinstance(handle, QuantisedHandle)
        true = float((handle.read().double() - whole.double()).norm())
        sums = difference(Pair(name, open_checkpoint({name: w}).tensors[name], handle), torch.device("cpu")).sums
        row = deltaw.analyze({name: w}, stored, device="cpu", jobs=1).rows[0]
    found = row["signal_rank"]
    assert isinstance(found, int)
    return math.sqrt(float(sums.noise_row.sum())) / true, found


def bound(scheme: str, kind: str) -> str:
    """What the predicted noise is promised to be, over the true one."""
    if kind == KINDS[0]:
        return "≤ 1.20" if scheme in CODEBOOKS else "≤ 1.05"
    return "≤ 1.30" if scheme in CODEBOOKS else "≤ 1.10"


def table(trials: int = 40) -> Iterator[Row]:
    """All of it: for every scheme and kind of weights the ratio of the noises and the false directions.

    Args:
        trials: Matrices of every scheme and kind.
    """
    for scheme in SCHEMES:
        for kind in KINDS:
            found = [trial(kind, scheme, seed) for seed in range(trials)]
            ratios = [ratio for ratio, _ in found]
            name = f"{scheme}, {kind}"
            yield Row(
                f"{name}: predicted over true noise, median", bound(scheme, kind), statistics.median(ratios), trials
            )
            yield Row(f"{name}: predicted over true noise, smallest", "≥ .97", min(ratios), trials)
            yield Row(f"{name}: predicted over true noise, largest", "published", max(ratios), trials)
            yield rate(f"{name}: a direction above the edge", "≤ .01", sum(k > 0 for _, k in found), trials)
    for scheme, size, want in (("FP8, rows", 0.03, 16), ("FP8, blocks", 0.03, 16), ("int4 g32", 0.01, 0)):
        ranks = [trial(KINDS[0], scheme, seed, size)[1] for seed in range(trials)]
        yield rate(
            f"rank 16 of {size:.0%}, {scheme}: signal_rank {want}", "≥ .99", sum(k == want for k in ranks), trials
        )
