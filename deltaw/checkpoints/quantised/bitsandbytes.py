"""bitsandbytes' four-bit weights: flat bytes, the high nibble first, an absmax per block of the row-major index.

`weight.absmax`, `weight.quant_map` (16 numbers), `weight.quant_state.bitsandbytes__nf4` (JSON as bytes); where
absmax is quantised itself: `weight.nested_absmax`, `weight.nested_quant_map`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING

from deltaw.checkpoints.quantised.module import Codes, ModuleTensors, Values
from deltaw.checkpoints.quantised.values import cells, looked_up, nibbles, times_scale
from deltaw.documents import Document, parse_object
from deltaw.errors import CheckpointError
from deltaw.types import Handle, times

if TYPE_CHECKING:
    import torch

STATE = ".quant_state.bitsandbytes__"
STATE_BYTES = 4096  # the JSON of one weight has some 200


def claims(module: ModuleTensors) -> Iterator[Codes]:
    """The weights of a module that bitsandbytes stored in four bits."""
    for leaf, handle in module.leaves.items():  # the bytes may be stored as any dtype
        if f"{leaf}.absmax" not in module.leaves:
            continue
        state = next((found for found in module.leaves if found.startswith(leaf + STATE)), "")
        parts = {
            "codes": handle,
            **module.parts(
                absmax=f"{leaf}.absmax",
                code=f"{leaf}.quant_map",
                nested_absmax=f"{leaf}.nested_absmax",
                nested_code=f"{leaf}.nested_quant_map",
                state=state,
            ),
        }
        kind = state.rpartition("__")[2] or "nf4"
        shape, problem = _shape(parts)
        yield Codes(module.named(leaf), kind if kind in {"nf4", "fp4"} else "bnb_4bit", shape, parts, problem)


def _shape(parts: Mapping[str, Handle]) -> tuple[tuple[int, ...] | None, str]:
    """The weight's shape, and what keeps it from being read."""
    if "state" not in parts:
        return None, "its quant_state is missing, which holds its shape"
    state = quant_state(parts["state"])
    shape = state.values.get("shape")
    if not isinstance(shape, list) or not shape or not all(isinstance(n, int) and 0 <= n < 2**48 for n in shape):
        return None, "its quant_state holds no shape"
    numbers, stored = prod(shape), parts["codes"].nbytes
    if -(-numbers // 2) != stored:
        said = times(shape)
        return None, f"its quant_state says {said}, which {stored:,} bytes cannot hold"
    sizes = [state.values.get("blocksize"), state.values.get("nested_blocksize") if "nested_absmax" in parts else 1]
    if not all(isinstance(n, int) and n > 0 for n in sizes):
        return tuple(shape), "its quant_state holds no blocksize"
    if "code" not in parts or prod(parts["code"].shape) != 16:
        return tuple(shape), "its quant_map is missing, which holds its 16 codes"
    if ("nested_absmax" in parts) != ("nested_code" in parts):
        return tuple(shape), "its nested_absmax and nested_quant_map belong together, and one is missing"
    return tuple(shape), ""


def quant_state(handle: Handle) -> Document:
    """The JSON that is stored as a tensor of bytes; empty where it is none.

    Raises:
        CheckpointError: The bytes cannot be read.
    """
    if handle.dtype not in {"uint8", "int8"} or handle.nbytes > STATE_BYTES:
        return Document()
    octets = bytes(handle.read().flatten().tolist())
    try:
        return parse_object(octets.decode("utf-8", "replace"), handle.name)
    except CheckpointError:
        return Document()


def dequantise(codes: Codes, rows: slice) -> Values:
    """Rows of code[nibble]·absmax, absmax per block of the flat row-major index.

    Raises:
        CheckpointError: The bytes cannot be read.
    """
    import torch

    assert codes.shape is not None
    parts, state = codes.parts, quant_state(codes.parts["state"])
    row = prod(codes.shape[1:])
    first, last = rows.start * row, rows.stop * row
    stored = parts["codes"]
    if stored.dtype in {"uint8", "int8"} and len(stored.shape) == 2 and stored.shape[1] == 1:
        octets = stored.read(slice(first // 2, -(-last // 2)))
        skip = first - first // 2 * 2
    else:  # stored as another dtype of the same bytes (bnb_4bit_quant_storage)
        octets, skip = stored.read(), first
    picked = nibbles(octets.flatten(), high_first=True)[skip : skip + last - first]
    block = state.whole("blocksize")
    index = torch.arange(first, last) // block
    absmax = _absmax(parts, state, first // block, -(-last // block))[index - first // block]
    code = parts["code"].read().float()
    order = torch.argsort(code, stable=True)
    own = cells(code[order].double())[torch.argsort(order)]
    shape = (rows.stop - rows.start, *codes.shape[1:])
    return Values(
        lambda: times_scale(looked_up(code, picked), absmax).reshape(shape),
        lambda: times_scale(looked_up(own, picked), absmax.double() ** 2).reshape(shape),
    )


def _absmax(parts: Mapping[str, Handle], state: Document, start: int, stop: int) -> torch.Tensor:
    """The scale of some blocks, float32; where it is quantised itself, by its own code, absmax and offset.

    Raises:
        CheckpointError: The bytes cannot be read.
    """
    import torch

    stored = parts["absmax"].read().flatten()[start:stop]
    if "nested_absmax" not in parts:
        return stored.float()
    outer = parts["nested_absmax"].read().float().flatten()
    index = torch.arange(start, stop) // state.whole("nested_blocksize")
    nested = parts["nested_code"].read().float()[stored.view(torch.uint8).int()] * outer[index]
    return nested + state.number("nested_offset", 0.0)
