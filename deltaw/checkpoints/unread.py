"""Tensors that are there and are not read, each with its reason: codes of a quantised format, a sparse layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deltaw.checkpoints.checkpoint import Checkpoint
from deltaw.checkpoints.quantised import Codes, Detection, Quantisation, QuantisedHandle, detect
from deltaw.checkpoints.quantised.module import stored_as
from deltaw.documents import Document
from deltaw.errors import CheckpointError
from deltaw.types import Handle, Reason, Skipped

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class UnreadHandle:
    """A tensor that has a name, a shape and a reason why nothing of it is measured.

    Attributes:
        because, subject: Why, and the format or what went wrong, as in `Skipped`.
        detail: What was found, and the way out.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    because: Reason
    subject: str
    detail: str = ""

    @property
    def skipped(self) -> Skipped:
        """The same as the plan reports it."""
        return Skipped(self.name, self.because, self.detail, self.subject)

    @property
    def reason(self) -> str:
        """Why, in words: `quantised: FORMAT`, `unsupported: KIND` or `failed: …`."""
        return self.skipped.reason

    @property
    def storage(self) -> Hashable:
        """It is tied to nothing."""
        return (self.name, self.reason)

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """Never returns.

        Raises:
            CheckpointError: Always, with the reason.
        """
        raise CheckpointError(f"{self.name!r} is not read ({self.reason}; {self.detail})")


def why_unread(handle: Handle) -> Skipped | None:
    """Why a tensor is not read, as the plan reports it; None for every tensor that can be read."""
    return handle.skipped if isinstance(handle, UnreadHandle) else None


def without_codes(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with codes under the name and shape of the weight they stand for, and without their companions.

    Raises:
        CheckpointError: A shape that only a stored tensor tells cannot be read.
    """
    found = detect(checkpoint.tensors, checkpoint.config)
    if not found:
        return checkpoint
    tensors: dict[str, Handle] = {}
    for name, handle in checkpoint.tensors.items():
        if name in found.codes:
            codes = found.codes[name]
            tensors[codes.name] = _read_codes(codes) if codes.dequantise is not None else _unread_codes(codes)
        elif name not in found.companions:
            tensors[name] = handle
    notes = (*checkpoint.notes, *_about_codes(found, checkpoint.config))
    return replace(checkpoint, tensors=tensors, notes=notes, companions={**checkpoint.companions, **found.companions})


def _about_codes(found: Detection, config: Document) -> Iterator[str]:
    """What a reader should know of a quantised checkpoint: its formats, and what they add to a difference."""
    read = Counter(codes.format for codes in found.weights.values() if codes.dequantise is not None)
    for form, count in read.items():
        yield stored_as(form, count)
    if any(form.startswith("gptq") for form in read):
        yield "GPTQ's errors are made to depend on each other: they may stand above the noise that their steps predict"
    method = Quantisation.of(config)
    awq = any(form.startswith("awq") for form in read)
    moved = "AWQ" if awq else "SmoothQuant" if "smooth" in method.method else "a rotation" if method.rotated else ""
    if moved:
        yield f"{moved} moves scale between layers: a difference from the original checkpoint shows that, too"


def _read_codes(codes: Codes) -> QuantisedHandle:
    assert codes.shape is not None
    return QuantisedHandle(codes.name, codes.shape, codes.format, codes)


def _unread_codes(codes: Codes) -> UnreadHandle:
    shape = codes.shape if codes.shape is not None else codes.parts["codes"].shape
    why = codes.problem or "this format is not read"
    detail = f"{why}; load it with its own library and save it as bfloat16 (transformers: model.dequantize())"
    return UnreadHandle(codes.name, shape, codes.format, codes.nbytes, Reason.QUANTISED, codes.format, detail)


def renamed(companions: Mapping[str, Skipped], prefix: str) -> dict[str, Skipped]:
    """Companions of one component of a pipeline, by their names in the whole."""
    return {f"{prefix}{name}": replace(why, name=f"{prefix}{name}") for name, why in companions.items()}
