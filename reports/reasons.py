"""Why a tensor has no row, in words."""

from __future__ import annotations

from deltaw.reports.text import visible
from deltaw.types import Reason, Skipped

WORDS: dict[Reason, str] = {
    Reason.ONLY_IN_BASE: "only in the base",
    Reason.ONLY_IN_FT: "only in the fine-tune",
    Reason.SHAPE_MISMATCH: "another shape on the other side",
    Reason.NOT_FLOATING: "no floating-point numbers",
    Reason.TIED_TO: "the same tensor as",
    Reason.EXCLUDED: "left out by --include or --exclude",
    Reason.QUANTISED: "quantised",
    Reason.UNSUPPORTED: "not supported",
    Reason.FAILED: "could not be measured",
    Reason.NEEDS_BASE: "needs the base",
    Reason.NOT_A_WEIGHT: "no weight",
    Reason.NO_DELTA: "no update to form",
    Reason.EMPTY: "no entries",
    Reason.BASE_CHANGED: "the adapter changed its base",
    Reason.BASE_CHANGED_AT_INIT: "the adapter changed its base when it was made",
}


def words(reason: Reason) -> str:
    """A reason as it is read: `only in the base`."""
    return WORDS.get(reason, reason.value.replace("_", " "))


def why(skipped: Skipped) -> str:
    """The reason with its subject: `the same tensor as model.embed_tokens.weight`, `quantised: gptq`."""
    if not skipped.subject:
        return words(skipped.because)
    return f"{words(skipped.because)}{' ' if skipped.because is Reason.TIED_TO else ': '}{visible(skipped.subject)}"
