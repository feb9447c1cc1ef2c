"""GPTQ and AWQ: `qweight`, `qzeros`, `scales` (and GPTQ's `g_idx`), stored inputs × outputs.

GPTQ packs along the inputs, AWQ along the outputs in the order 0, 4, 1, 5, 2, 6, 3, 7; v1 of GPTQ stores z − 1.
"""

from __future__ import annotations

from collections.abc import Iterator

from deltaw.checkpoints.quantised.module import Codes, Module, shown

OTHERS = frozenset({"gptq", "gptq-v2", "gptqmodel", "awq", "auto-round", "intel/auto-round", "marlin", "gptq-marlin"})


def claims(module: Module) -> Iterator[Codes]:
    """The weight of a module that GPTQ or AWQ stored."""
    qweight = module.get("qweight")
    if qweight is None or qweight.dtype not in {"int32", "uint32", "int16"}:
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
    yield Codes(name, label, (outputs, inputs), parts, block=(1, group), bits=bits)


def _layout(
    module: Module, qweight: tuple[int, ...], scales: tuple[int, ...], zeros: tuple[int, ...]
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
