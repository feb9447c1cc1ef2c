"""The errors raised on purpose: one root, few kinds, each message one line.

A message says what, where, what was found, what was expected and what to do. Anything that is not a
`DeltaWError` is a defect of deltaw.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 2000  # characters of a line: what a foreign file holds must not fill a screen or a log
MOST_LINES = 100


class DeltaWError(Exception):
    """The root of every error that deltaw raises on purpose.

    Its text is bounded, however long the names are that a message tells.
    """

    def __str__(self) -> str:
        lines = Exception.__str__(self).split("\n")  # not super's: a KeyError shows the repr of its message
        cut = [line if len(line) <= LONGEST else f"{line[:LONGEST]}…" for line in lines[:MOST_LINES]]
        return "\n".join([*cut, f"… ({len(lines) - MOST_LINES:,} more lines)"] if len(lines) > MOST_LINES else cut)


class OptionError(DeltaWError, ValueError):
    """An option has a value that cannot be used."""


class CheckpointError(DeltaWError):
    """A checkpoint cannot be opened or read."""


class AdapterError(CheckpointError):
    """An adapter cannot be opened, or does not fit its base."""


class PairingError(DeltaWError):
    """Two checkpoints have nothing that can be compared."""


class TensorError(DeltaWError):
    """One tensor cannot be measured; the others can."""


class NotFiniteError(TensorError):
    """A tensor has entries that are NaN or infinite."""


class ResultsError(DeltaWError):
    """Saved results cannot be read, or would be overwritten."""


class UnknownNameError(ResultsError, KeyError):
    """Results hold nothing of that name."""


class ClusterError(DeltaWError):
    """A cluster cannot be reached or used, or lost what was running there."""


class EditError(DeltaWError):
    """An update cannot be extracted, resized or edited as asked."""


class ManifestError(DeltaWError):
    """A manifest of runs cannot be used."""


class ActivationsError(DeltaWError):
    """The inputs of a model's matrices cannot be collected, or a file of them cannot be used."""


class MissingExtraError(DeltaWError, ImportError):
    """An optional dependency is not installed."""


def near(name: str, known: Iterable[str], *, within: str = "", listed: int = 0) -> str:
    """A hint that ends a message about an unknown name: the known ones that are spelt nearly so, or nothing.

    Args:
        name: What was asked for.
        known: What there is.
        within: What is put before each suggestion, such as a directory.
        listed: How many of the known ones are named where none is near.
    """
    names = [*known]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(repr(within + c) for c in close)}?"
    if listed and not names:
        return " There are none."
    return f" There are: {', '.join(names[:listed])}{', …' if len(names) > listed else ''}." if listed else ""
