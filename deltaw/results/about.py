"""`analysis.json` read back: every value of its type, or one line that says which is not."""

from __future__ import annotations

from dataclasses import fields

from deltaw.documents import Document
from deltaw.errors import ResultsError
from deltaw.results.shares import Share
from deltaw.results.sources import FileStamp, Source
from deltaw.types import Coverage, IntruderCount, OptionValue, Reason, Skipped, is_option_value


def source(about: Document) -> Source | None:
    """One side, as `Source.to_dict` wrote it; None of the empty object that stands for no base.

    Raises:
        DeltaWError: A value is missing, or of another type. So for every function here.
    """
    if not about:
        return None
    return Source(
        path=about.text("path"),
        format=about.text("format"),
        tensors=about.whole("tensors", 0),
        nbytes=about.whole("bytes", 0),
        revision=about.text("revision") or None,
        files=tuple(
            FileStamp(f.text("path", None), f.whole("size"), f.whole("modified"), f.text("etag"))
            for f in about.inners("files")
        ),
        base_name=about.text("base_name") or None,
        found_by=about.text("found_by"),
        hash=about.text("hash"),
    )


def skipped(about: Document) -> Skipped:
    """A tensor without a row, as `Skipped.to_dict` wrote it.

    Raises:
        ResultsError: The reason is none of `Reason`.
    """
    word, _, subject = about.text("reason", None).partition(" ")
    try:
        because = Reason(word.removesuffix(":"))
    except ValueError as e:
        raise ResultsError(f"{about.where}: the reason {word[:60]!r} is unknown; run analyze again") from e
    return Skipped(about.text("name", None), because, about.text("detail"), subject)


def coverage(about: Document) -> Coverage:
    """How much was compared."""
    return Coverage(**{f.name: about.whole(f.name) for f in fields(Coverage) if f.init})


def intruders(about: Document) -> IntruderCount:
    """The intruders of one matrix by one definition."""
    return IntruderCount(
        key=about.text("key", None),
        k=about.whole("k"),
        epsilon=about.number("epsilon"),
        intruders=about.whole("intruders"),
        intruders_right=about.whole("intruders_right"),
        intruders_null=about.number("intruders_null"),
    )


def options(about: Document) -> dict[str, OptionValue]:
    """The options of an analysis: plain values, or lists of them.

    Raises:
        ResultsError: One is something else.
    """
    out: dict[str, OptionValue] = {}
    for name, value in about.values.items():
        if not is_option_value(value):
            raise ResultsError(f"{about.where}: {name!r} is not a value of an option; run analyze again")
        out[name] = tuple(value) if isinstance(value, list) else value  # can be told apart and counted
    return out


def share(about: Document) -> Share | None:
    """Which share of the whole the results are; None where they are all of it."""
    if not about:
        return None
    return Share(
        index=about.whole("index"),
        of=about.whole("of"),
        pairs=about.whole("pairs"),
        positions=about.wholes("positions"),
        planned=coverage(about.inner("planned")),
        reached=coverage(about.inner("reached")),
    )


def texts(about: Document) -> dict[str, str]:
    """An object whose values are texts."""
    return {name: about.text(name) for name in about}
