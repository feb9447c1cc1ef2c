"""GPTQ and AWQ: `qweight`, `qzeros`, `scales` (and GPTQ's `g_idx`), stored inputs × outputs.

GPTQ packs along the inputs, AWQ along the outputs in the order 0, 4, 1, 5, 2, 6, 3, 7; v1 of GPTQ stores z − 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from deltaw.checkpoints.quantised.module import Codes, ModuleTensors, Values, shown
from deltaw.checkpoints.quantised.values import WORD, ends, even_variance, unpacked

if TYPE_CHECKING:
    import torch

AWQ_NIBBLE = (0, 4, 1, 5, 2, 6, 3, 7)  # the nibble of a word that holds each of its eight outputs


def claims(module: ModuleTensors) -> Iterator[Codes]:
    """The weight of a module that GPTQ or AWQ stored."""
    qweight = module.get("qweight")
    if qweight is None or qweight.dtype not in {"int32", "uint32"}:
        return
    parts = module.parts(codes="qweight", zero="qzeros", scale="scales", group_index="g_idx")
    name = module.named("weight")
    missing = [leaf for leaf in ("scales", "qzeros") if leaf not in module.leaves]
    if missing or len(qweight.shape) != 2:
        label = module.config.method or "gptq"
        yield Codes(name, label, None, parts, f"its {' and '.join(missing) or '2-D qweight'} missing")
        return
    scales, zeros = parts["scale"], parts["zero"]
    method, outputs, bits = _layout(module, qweight.shape, scales.shape, zeros.shape)
    if not bits:
        problem = f"its qweight is {shown(qweight)}, its scales are {shown(scales)}: they do not fit"
        yield Codes(name, method, None, parts, problem)
        return
    inputs = qweight.shape[0] * 32 // bits if method == "gptq" else qweight.shape[0]
    group = -(-inputs // scales.shape[0])
    label = f"{method}_int{bits}_g{group}" if group < inputs else f"{method}_int{bits}_row"
    said = {module.config.method, module.config.text("checkpoint_format").replace("_", "-")}
    variant = "v2" if said & {"gptq-v2"} else ""
    yield Codes(name, label, (outputs, inputs), parts, block=(1, group), bits=bits, variant=variant)


def _layout(
    module: ModuleTensors, qweight: tuple[int, ...], scales: tuple[int, ...], zeros: tuple[int, ...]
) -> tuple[str, int, int]:
    """`gptq` or `awq`, the outputs, and bits per code (0: the shapes contradict each other)."""
    said = module.config.integer("bits") or module.config.integer("w_bit")
    method = module.config.method
    by_name = "awq" if "awq" in (method, module.config.text("backend")) else "gptq" if method.startswith("gptq") else ""
    if len(scales) != 2 or len(zeros) != 2 or not all((*qweight, *scales, *zeros)):
        return by_name or "gptq", 0, 0
    outputs = scales[1]
    # The shapes tell the two apart: AWQ packs outputs, so its qweight has fewer columns than there are scales.
    kind = "awq" if qweight[1] < outputs else "gptq"
    bits = 32 * zeros[1] // outputs
    fits = bits in {2, 3, 4, 8} and (kind != "awq" or qweight[1] * 32 == outputs * bits)
    if not fits or (said and said != bits) or (by_name and by_name != kind) or qweight[0] < scales[0] // max(1, bits):
        return by_name or kind, outputs, 0
    return kind, outputs, bits


def dequantise(codes: Codes, rows: slice) -> Values:
    """Outputs `rows` of (q − z)·scale; all codes are read, as each word holds inputs of one output, or eight outputs.

    Raises:
        CheckpointError: The bytes cannot be read.
    """
    import torch

    assert codes.shape is not None
    assert codes.bits is not None
    assert codes.block is not None
    outputs, inputs = codes.shape
    bits, parts = codes.bits, codes.parts
    scale = parts["scale"].read()[:, rows].float()
    if codes.format.startswith("awq"):
        q = _awq(parts["codes"].read(), bits, rows)
        zeros = _awq(parts["zero"].read(), bits, slice(None))
    else:
        q = unpacked(parts["codes"].read()[:, rows].T.contiguous(), bits, inputs).T
        zeros = unpacked(parts["zero"].read(), bits, outputs)
        if codes.variant != "v2":
            zeros = (zeros + 1) & (2**bits - 1)
    zero, symmetric = zeros[:, rows], bool((zeros == 2 ** (bits - 1)).all())
    group = in_order = torch.arange(inputs) // codes.block[1]
    if "group_index" in parts:
        group = parts["group_index"].read().long()
    each = scale[group]
    top = 2**bits - 1 if symmetric else None
    return Values(
        lambda: ((q.float() - zero.float()[group]) * each).T.contiguous(),
        lambda: even_variance(q, each, top).T.contiguous(),
        lambda: ends(q, 0, 2**bits - 1).T.contiguous(),
        codes.block[1] if torch.equal(group, in_order) and inputs % codes.block[1] == 0 else 0,
    )


def _awq(words: torch.Tensor, bits: int, rows: slice) -> torch.Tensor:
    """Codes of some outputs, (inputs, outputs), out of words in AWQ's order."""
    import torch

    every = unpacked(words, bits).reshape(len(words), -1, WORD // bits)
    order = torch.tensor(AWQ_NIBBLE) if bits == 4 else torch.arange(WORD // bits)
    chosen: torch.Tensor = every[..., order].flatten(-2)[:, rows]
    return chosen
