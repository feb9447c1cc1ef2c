"""Weights in the types of ggml that its `gguf` package reads and does not write: ranges of every block, to nearest.

llama.cpp also searches for the scales with the smallest error; the layout and the codes are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from deltaw.checkpoints.gguf.blocks import IQ4

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def _half(x: Floats) -> tuple[Bytes, Floats]:
    """Numbers (blocks,) as float16: their bytes, and their values."""
    stored = x.astype(np.float16)
    return stored[:, None].view(np.uint8), stored.astype(np.float32)


def q4_k(w: Floats) -> Bytes:
    """Eight groups of 32 with scales and minima of six bits, (blocks, 256) → (blocks, 144)."""
    x = w.reshape(-1, 8, 32)
    low = np.minimum(x.min(-1), 0)
    step = (x.max(-1) - low) / 15
    (d_bytes, d), (m_bytes, m) = _half(step.max(1) / 63), _half(-low.min(1) / 63)
    scale, least = (np.rint(a / b[:, None]).clip(0, 63).astype(np.uint8) for a, b in ((step, d), (-low, m)))
    width = (d[:, None] * scale)[..., None]
    q = np.rint((x + (m[:, None] * least)[..., None]) / np.where(width > 0, width, 1)).clip(0, 15).astype(np.uint8)
    first, second = (a[:, :4] | ((a[:, 4:] & 0x30) << 2) for a in (scale, least))
    rest = (scale[:, 4:] & 15) | ((least[:, 4:] & 15) << 4)
    codes = q[:, 0::2] | (q[:, 1::2] << 4)
    return np.concatenate((d_bytes, m_bytes, first, second, rest, codes.reshape(len(x), -1)), axis=1)


def q6_k(w: Floats) -> Bytes:
    """Sixteen groups of 16 with scales of eight bits, (blocks, 256) → (blocks, 210)."""
    x = w.reshape(-1, 16, 16)
    largest = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)[..., 0]
    step = -largest / 32
    d_bytes, d = _half(np.abs(step).max(1) / 127)
    scale = np.rint(step / d[:, None]).clip(-127, 127).astype(np.int8)
    width = (d[:, None] * scale)[..., None]
    q = (np.rint(x / np.where(width != 0, width, 1)).clip(-32, 31) + 32).astype(np.uint8)
    low, high = (q & 15).reshape(-1, 2, 2, 2, 32), (q >> 4).reshape(-1, 2, 4, 32)
    nibbles = low[:, :, 0] | (low[:, :, 1] << 4)
    pairs = high[:, :, 0] | (high[:, :, 1] << 2) | (high[:, :, 2] << 4) | (high[:, :, 3] << 6)
    return np.concatenate(
        (nibbles.reshape(len(x), -1), pairs.reshape(len(x), -1), scale.view(np.uint8), d_bytes), axis=1
    )


def iq4_nl(w: Floats) -> Bytes:
    """32 codes of a codebook, (blocks, 32) → (blocks, 18)."""
    x = w.reshape(-1, 32)
    largest = np.take_along_axis(x, np.abs(x).argmax(-1)[:, None], -1)[:, 0]
    d_bytes, d = _half(largest / IQ4[0])
    codebook = np.array(IQ4, dtype=np.float32)
    q = np.searchsorted((codebook[1:] + codebook[:-1]) / 2, x / np.where(d != 0, d, 1)[:, None]).astype(np.uint8)
    return np.concatenate((d_bytes, q[:, :16] | (q[:, 16:] << 4)), axis=1)


BLOCKS: Mapping[str, tuple[int, Callable[[Floats], Bytes]]] = {
    "Q4_K": (256, q4_k),
    "Q6_K": (256, q6_k),
    "IQ4_NL": (32, iq4_nl),
}


def quantise(w: Floats, kind: str) -> Bytes:
    """A matrix (m, n) in one of these types, (m, bytes of a row)."""
    size, encode = BLOCKS[kind]
    return encode(w.reshape(-1, size)).reshape(len(w), -1)
