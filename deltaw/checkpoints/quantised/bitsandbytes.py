"""bitsandbytes' four-bit weights: flat bytes, the high nibble first, an absmax per block of the row-major index.

`weight.absmax`, `weight.quant_map` (16 numbers), `weight.quant_state.bitsandbytes__nf4` (JSON as bytes); where
absmax is quantised itself: `weight.nested_absmax`, `weight.nested_quant_map`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from deltaw.checkpoints.quantised.module import Codes, Module, count
from deltaw.errors import CheckpointError
from deltaw.types import Handle

STATE = ".quant_state.bitsandbytes__"
STATE_BYTES = 4096  # the JSON of one weight has some 200


def claims(module: Module) -> Iterator[Codes]:
    """The weights of a module that bitsandbytes stored in four bits."""
    for leaf, handle in module.coded():
        if f"{leaf}.absmax" not in module.leaves or handle.dtype not in {"uint8", "int8"}:
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


def _shape(parts: dict[str, Handle]) -> tuple[tuple[int, ...] | None, str]:
    if "state" not in parts:
        return None, "its quant_state is missing, which holds its shape"
    state = quant_state(parts["state"])
    shape = state.get("shape")
    if not isinstance(shape, list) or not all(isinstance(n, int) and 0 <= n < 2**48 for n in shape):
        return None, "its quant_state holds no shape"
    numbers = 1
    for n in shape:
        numbers *= n
    if -(-numbers // 2) != count(parts["codes"]):
        return (
            None,
            f"its quant_state says {'×'.join(map(str, shape))}, which {count(parts['codes'])} bytes cannot hold",
        )
    return tuple(shape), ""


def quant_state(handle: Handle) -> dict[str, object]:
    """The JSON that is stored as a tensor of bytes; empty where it is none.

    Raises:
        CheckpointError: The bytes cannot be read.
    """
    if handle.dtype not in {"uint8", "int8"} or count(handle) > STATE_BYTES:
        return {}
    try:
        value = json.loads(bytes(handle.read().flatten().tolist()))
    except CheckpointError:
        raise
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
