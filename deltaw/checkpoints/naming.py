"""Names of tensors that could not be written again are refused where they come in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from deltaw.errors import CheckpointError

MAX_NAME = 1024  # characters
MAX_DIGITS = 18  # of a layer's number, which is a 64-bit column
UNWRITABLE = re.compile("[\\0\ud800-\udfff]")
NUMBER = re.compile(rf"(?:^|\.)\d{{{MAX_DIGITS + 1},}}(?:\.|$)")
RESERVED = "__metadata__"  # a safetensors file keeps something else under this name


def check_names(names: Iterable[str], source: str) -> None:
    """Refuse names that no table or safetensors file can hold.

    Raises:
        CheckpointError: A name holds half a character or NUL, is too long, or is reserved.
    """
    known = list(names)
    if not _suspicious(known):
        return
    for name in known:
        problem = _problem(name)
        if problem:
            shown = name[:60].encode("unicode_escape").decode("ascii") + ("…" if len(name) > 60 else "")
            raise CheckpointError(f"{source}: the tensor '{shown}' {problem}, which no result can hold; rename it")


def _suspicious(names: Sequence[str]) -> bool:
    """Whether any of many names has to be looked at by itself; nearly always none has."""
    text = ".".join(names)
    return (
        not text.isascii()
        or "\0" in text
        or RESERVED in names
        or max(map(len, names), default=0) > MAX_NAME
        or any(len(part) > MAX_DIGITS and part.isdecimal() for part in text.split("."))
    )


def _problem(name: str) -> str:
    if len(name) > MAX_NAME:
        return f"has a name of {len(name):,} characters"
    if name == RESERVED:
        return "has a reserved name"
    if UNWRITABLE.search(name):
        return "has NUL or half a character in its name"
    return f"has a number of more than {MAX_DIGITS} digits in its name" if NUMBER.search(name) else ""
