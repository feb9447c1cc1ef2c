"""Which tensors of a checkpoint are codes, which belong to codes, and which are weights as they are.

Told from names, dtypes and shapes in the headers and from the config, never from values. A module (`…q_proj`) is
offered to each scheme; the first that knows its tensors has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from deltaw.checkpoints.quantised import bitsandbytes, gptq, microscaling, mlx, others, packed, scaled
from deltaw.checkpoints.quantised.module import CODES, Codes, ModuleTensors, Quantisation, Values
from deltaw.documents import Document
from deltaw.types import Handle, Reason, Skipped

Claims = Callable[[ModuleTensors], Iterator[Codes]]
SCHEMES: tuple[tuple[Claims, Callable[[Codes, slice], Values] | None], ...] = (
    (bitsandbytes.claims, bitsandbytes.dequantise),
    (gptq.claims, gptq.dequantise),
    (packed.claims, packed.dequantise),
    (microscaling.claims, microscaling.dequantise),
    (mlx.claims, mlx.dequantise),
    (scaled.claims, scaled.dequantise),
    (others.claims, None),
)
# A scale of activations or of the cache, a marker: beside codes, or in a quantised checkpoint, never a weight.
ACTIVATIONS = re.compile(
    r"^(input|output|activation|act|prob_output|q|k|v|kv_cache|key|value)_?(global_)?scales?(_inv|_2)?$"
    r"|^(scale_input|weight_format|comfy_quant|input_zero_point|output_zero_point|scaled_fp8)$"
)
# A scale by its name alone, wherever it stands; with a config that says quantised also the second kind.
STRAY = re.compile(r"_scale_inv$|^SCB$|^qzeros$|^weight\.(nested_)?(absmax|quant_map)$|\.quant_state\.|^scaled_fp8$")
STRAY_IF_QUANTISED = re.compile(
    r"^(weight|(gate_up|gate|up|down)_proj|w[123]|w13)_(scales?|zero_point|global_scale|scale_2|shape|g_idx|blocks)$"
    r"|^(g_idx|scales)$"
)
# What a quantiser measured beside a weight that is stored as it is: modelopt, pytorch-quantization, torch.ao.
QUANTISER = re.compile(
    r"(^|\.)_?((weight|input|output|act|activation|[qkv]_bmm|softmax|aftergemm)_(quantizer|fake_quant)"
    r"|activation_post_process)\."
)


@dataclass(frozen=True)
class Detection:
    """What of a checkpoint is quantised.

    Attributes:
        weights: Codes by the name of the weight that they stand for.
        codes: The same by the stored name of the tensor of codes.
        companions: Stored tensors that are no weights, by name, with what they belong to: scales, zero points, …
    """

    weights: Mapping[str, Codes] = field(default_factory=dict)
    codes: Mapping[str, Codes] = field(default_factory=dict)
    companions: Mapping[str, Skipped] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.weights or self.companions)


def detect(tensors: Mapping[str, Handle], config: Document) -> Detection:
    """What of a checkpoint's tensors is codes, and what belongs to them; every other tensor is what it seems.

    Args:
        tensors: Handles by stored name.
        config: The model's config.json.

    Raises:
        CheckpointError: A shape that only a stored tensor tells cannot be read.
    """
    settings = Quantisation.of(config)
    companions = {
        n: Skipped(n, Reason.NOT_A_WEIGHT, "what a quantiser measured; the weight beside it is stored as it is")
        for n in tensors
        if ("quant" in n or "_post_process" in n) and QUANTISER.search(n)
    }
    if not settings and not any(h.dtype in CODES or n.endswith(".absmax") for n, h in tensors.items()):
        return Detection(companions=companions)
    weights: dict[str, Codes] = {}
    codes: dict[str, Codes] = {}
    tensors = {n: h for n, h in tensors.items() if n not in companions} if companions else tensors
    for module in _modules(tensors, settings):
        found = _claimed(module)
        for claim in found:
            weights[claim.name] = claim
            codes[claim.parts["codes"].name] = claim
        for claim in found:
            for role, part in claim.parts.items():
                if part.name not in codes:
                    companions[part.name] = _companion(part, claim.format, f"{role} of {claim.name}")
        unread = any(claim.dequantise is None for claim in found) and bool(module.path)
        for leaf, handle in module.leaves.items():
            if handle.name in codes or handle.name in companions:
                continue
            if (found or settings) and ACTIVATIONS.search(leaf):
                label = found[0].format if found else settings.method or "unknown"
                companions[handle.name] = _companion(handle, label, "no weight: the scale of activations")
            elif found and (others.COMPANION.search(leaf) or (unread and _may_belong(leaf, handle))):
                companions[handle.name] = _companion(
                    handle, found[0].format, "beside codes; what it is for is not known"
                )
            elif STRAY.search(leaf) or (settings and STRAY_IF_QUANTISED.search(leaf)):
                label = settings.method or "unknown"
                companions[handle.name] = _companion(handle, label, "a scale without codes beside it")
    return Detection(weights, codes, companions)


def _may_belong(leaf: str, handle: Handle) -> bool:
    """Whether a tensor may be a part of the codes beside it whose layout is not known: a vector that is no bias."""
    return len(handle.shape) < 2 and not leaf.endswith("bias") and not handle.dtype.startswith("int64")


def _companion(handle: Handle, form: str, detail: str) -> Skipped:
    return Skipped(handle.name, Reason.QUANTISED, detail, form)


def _claimed(module: ModuleTensors) -> list[Codes]:
    """The codes of one module; a tensor belongs to the first scheme that knows it."""
    found: list[Codes] = []
    taken: set[str] = set()
    for claims, dequantise in SCHEMES:
        for claim in claims(module):
            if claim.parts["codes"].name not in taken:
                known = dequantise is not None and not claim.problem and claim.shape is not None
                found.append(replace(claim, dequantise=dequantise if known else None))
                taken.update(h.name for h in claim.parts.values())
    return found


def _modules(tensors: Mapping[str, Handle], settings: Quantisation) -> Iterator[ModuleTensors]:
    grouped: dict[str, dict[str, Handle]] = {}
    for name, handle in tensors.items():
        path, leaf = _split(name)
        grouped.setdefault(path, {})[leaf] = handle
    for path, leaves in grouped.items():
        if settings or any(h.dtype in CODES or leaf.endswith(".absmax") for leaf, h in leaves.items()):
            yield ModuleTensors(path, leaves, settings)


def _split(name: str) -> tuple[str, str]:
    """A module and the rest of a tensor's name; what stands below a `weight` belongs to it."""
    head, below, rest = name.partition(".weight.")
    if below:
        return head, f"weight.{rest}"
    if name.startswith("weight."):
        return "", name
    path, _, leaf = name.rpartition(".")
    return path, leaf
