"""What to say where nothing of two sides can be compared: how far one got, and the names that come nearest."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence

from deltaw.checkpoints import Checkpoint
from deltaw.pairs.matching import agree
from deltaw.pairs.renames import HUGGING_FACE, META, suggestion
from deltaw.pairs.views import is_floating
from deltaw.tensors.names import unwrap
from deltaw.types import Handle, Reason, Skipped, times

CANDIDATES = 500  # names that are searched for a near one: a message need not look at all of a large model


def nothing_in_common(base: Checkpoint, ft: Checkpoint, skipped: Sequence[Skipped]) -> str:
    """The message where not one tensor can be compared."""
    counts = _counts(skipped) or "both are empty"
    what = f"{base.source} and {ft.source} have no tensor in common that can be compared ({counts})"
    if any(s.because == Reason.EXCLUDED for s in skipped):
        return f"{what}; check --include and --exclude"
    return f"{what}; {_advice(list(base.tensors.values()), ft, skipped)}"


def no_matrix(base: Checkpoint, ft: Checkpoint, asked: Sequence[Handle], skipped: Sequence[Skipped]) -> str:
    """The message where vectors alone could be compared."""
    what = f"{ft.source}: none of the {len(asked):,} matrices of {base.source} could be compared ({_counts(skipped)})"
    return f"{what}; {_advice(asked, ft, skipped)}"


def _advice(asked: Sequence[Handle], ft: Checkpoint, skipped: Sequence[Skipped]) -> str:
    names = {handle.name for handle in asked} | set(ft.tensors)
    unread = (s for s in skipped if s.name in names and s.because in (Reason.QUANTISED, Reason.UNSUPPORTED))
    quantised = next(unread, None)
    if quantised is not None:
        return f"{quantised.name} is {quantised.reason}: {quantised.detail}"
    if (native := _native([h.name for h in asked], [*ft.tensors])) is not None:
        return native
    near = nearest(asked, list(ft.tensors.values()))
    if near is None:
        first = (
            f"{next(iter(base.name for base in asked), 'no tensor')!r} against {next(iter(ft.tensors), 'no tensor')!r}"
        )
        return f"{first}; are they a base and its fine-tune?"
    b, f = near
    if b.name == f.name and b.dtype != f.dtype and not (is_floating(b) and is_floating(f)):
        return (
            f"{b.name} is {b.dtype} in the base and {f.dtype} in the fine-tuned side: codes without the scales that "
            "belong to them; give a checkpoint that was not quantised, or the dequantised one"
        )
    if unwrap(b.name) == unwrap(f.name):
        return (
            f"the nearest names are {b.name!r} {_size(b)} and {f.name!r} {_size(f)}; are they a base and its fine-tune?"
        )
    what = f"the nearest names are {b.name!r} {_size(b)} and {f.name!r} {_size(f)}; are they a base and its fine-tune?"
    if not agree(f.name, b.shape, f.shape):
        return what
    return f"{what} If one is the other's name, give {suggestion(f.name, b.name)}"


def _native(base: Sequence[str], ft: Sequence[str]) -> str | None:
    """What to say where one side has Meta's names: a rename would compare queries with other rows of themselves."""
    for native, other, which in ((base, ft, "base"), (ft, base, "fine-tuned side")):
        name = next(filter(META.search, native), None)
        if name is not None and any(map(HUGGING_FACE.search, other)):
            return (
                f"the {which} has the names of Meta's and Mistral's own files ({name!r}), whose queries and keys have "
                "their rows in another order; convert it with transformers' convert_llama_weights_to_hf.py or "
                "convert_mistral_weights_to_hf.py"
            )
    return None


def nearest(base: Sequence[Handle], ft: Sequence[Handle]) -> tuple[Handle, Handle] | None:
    """The two names that are most alike, of tensors of one shape if there are any."""
    shapes = {h.shape for h in base if len(h.shape) > 1}
    same = [f for f in ft if f.shape in shapes]
    best: tuple[float, Handle, Handle] | None = None
    for b in base[:20]:
        others = [f for f in same if f.shape == b.shape] or (ft if not same else [])
        names = {f.name: f for f in others[:CANDIDATES]}
        for name in difflib.get_close_matches(b.name, names, n=1, cutoff=0.0):
            ratio = difflib.SequenceMatcher(None, b.name, name).ratio()
            if best is None or ratio > best[0]:
                best = (ratio, b, names[name])
    return None if best is None else best[1:]


def _counts(skipped: Iterable[Skipped]) -> str:
    reasons = Counter(s.because.value for s in skipped)
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())


def _size(handle: Handle) -> str:
    return times(handle.shape)
