"""The shares of one analysis as one: what a single run would have given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from deltaw.errors import OptionError, ResultsError
from deltaw.measurement.directory import refuse_others
from deltaw.measurement.options import SPEED_ONLY
from deltaw.results import storage
from deltaw.results.analysis import Analysis, load
from deltaw.results.shares import Share
from deltaw.results.sources import Source
from deltaw.tensors.names import natural
from deltaw.types import Coverage, OptionValue, matrix_key

Part = tuple[str, Analysis, Share]  # where it lies, what it holds, which share it is


def gather(
    parts: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    formats: Sequence[str] = ("csv", "parquet"),
    force: bool = False,
) -> Analysis:
    """Join the shares that `analyze(part="I/N")` wrote, checked to belong together and to be complete.

    Args:
        parts: Their directories, in any order.
        out: A directory to write the whole to.
        formats: Tables to write there.
        force: Overwrite results of other inputs in `out`.

    Returns:
        The analysis of all of it: rows and spectra as one run on the same kind of machine gives them.

    Raises:
        OptionError: No directory is given.
        ResultsError: One is no share, of other inputs, options or version than the first, or given twice; or one is
            missing; or `out` cannot be written.
    """
    if not parts:
        raise OptionError("no directories to gather; give those that analyze --part wrote")
    found = sorted((_open(Path(p)) for p in parts), key=lambda part: part[2].index)
    for other in found[1:]:
        _check_alike(found[0], other)
    _check_complete(found)
    whole = _joined(found)
    if out is not None:
        out = Path(out)
        if any(Path(where).resolve() == out.resolve() for where, _, _ in found):
            raise ResultsError(f"{out}: is one of the parts; choose another --out")
        if not force:
            refuse_others(out, whole.base, whole.ft)
        whole.save(out, formats)
    return whole


def _open(folder: Path) -> Part:
    analysis = load(folder)
    if analysis.share is None:
        raise ResultsError(f"{folder}: is not a part, it holds a whole analysis; give what analyze --part I/N wrote")
    return str(folder), analysis, analysis.share


def _check_alike(first: Part, other: Part) -> None:
    """That two parts are of the same inputs, options and version.

    Raises:
        ResultsError: They are not.
    """
    (here, a, s), (there, b, t) = first, other
    for what, one, two in (
        ("number of parts", s.of, t.of),
        ("base", _content(a.base), _content(b.base)),
        ("fine-tuned side", _content(a.ft), _content(b.ft)),
        ("options", _numbers(a), _numbers(b)),
        ("version of deltaw", a.versions.get("deltaw"), b.versions.get("deltaw")),
        ("number of pairs", s.pairs, t.pairs),
    ):
        if one != two:
            raise ResultsError(
                f"{there}: differs from {here} in its {what} ({two}, not {one}); gather parts of one analysis"
            )


def _content(side: Source | None) -> str:
    """What tells a side: its content where that is known, since every machine may have it at another path."""
    return "none" if side is None else side.hash or side.revision or side.path


def _numbers(analysis: Analysis) -> dict[str, OptionValue]:
    return {k: v for k, v in analysis.options.items() if k not in SPEED_ONLY}


def _check_complete(found: Sequence[Part]) -> None:
    """That every share is there, once, with all of its pairs.

    Raises:
        ResultsError: One is missing, or there twice.
    """
    of = found[0][2].of
    counts = Counter(share.index for _, _, share in found)
    if twice := [index for index, n in counts.items() if n > 1]:
        places = ", ".join(where for where, _, share in found if share.index == twice[0])
        raise ResultsError(f"part {twice[0]}/{of} is given {counts[twice[0]]} times ({places}); give each once")
    if missing := [str(i) for i in range(1, of + 1) if i not in counts]:
        listed = ", ".join(missing[:10]) + (", …" if len(missing) > 10 else "")
        what = "part" if len(missing) == 1 else "parts"
        raise ResultsError(f"{what} {listed} of {of} missing; run analyze --part {missing[0]}/{of}, then gather again")
    positions = [p for _, _, share in found for p in share.positions]
    failed = sum(len(analysis.failed) for _, analysis, _ in found)
    if len(set(positions)) != len(positions) or len(positions) + failed != found[0][2].pairs:
        raise ResultsError(
            f"{found[0][0]}: the parts do not make up the {found[0][2].pairs} pairs of the whole; run them again with "
            "one version of deltaw on the same kind of device"
        )


def _joined(found: Sequence[Part]) -> Analysis:
    first = found[0][1]
    placed = [
        (position, row)
        for _, analysis, share in found
        for position, row in zip(share.positions, analysis.rows, strict=True)
    ]
    rows = [row for _, row in sorted(placed, key=lambda p: p[0])]
    order = {matrix_key(str(r["name"]), str(r.get("part") or "")): i for i, r in enumerate(rows)}
    spectra = {key: s for _, a, _ in found for key, s in a.spectra.items()}
    skipped = dict.fromkeys(s for _, a, _ in found for s in a.skipped)
    own = {*storage.notes(first.rows), found[0][2].note}
    return replace(
        first,
        rows=rows,
        spectra={key: spectra[key] for key in sorted(spectra, key=lambda k: order[k])},
        skipped=sorted(skipped, key=lambda s: natural(s.name)),
        intruders=sorted((i for _, a, _ in found for i in a.intruders), key=lambda i: order[i.key]),
        device=", ".join(dict.fromkeys(a.device for _, a, _ in found)),
        seconds=sum(a.seconds for _, a, _ in found),
        notes=(*(n for n in first.notes if n not in own), *storage.notes(rows)),
        coverage=_coverage([share for _, _, share in found]),
        command=first.command.replace(f" --part {found[0][2]}", ""),
        date=max(a.date for _, a, _ in found),
        share=None,
    )


def _coverage(shares: Sequence[Share]) -> Coverage:
    """What the whole compares: what was planned, without what failed in any share."""
    planned = shares[0].planned
    counts = {}
    for name in (f.name for f in fields(Coverage) if f.init):
        wanted: int = getattr(planned, name)
        counts[name] = wanted - sum(wanted - int(getattr(share.reached, name)) for share in shares)
    return Coverage(**counts)
