"""TOML files that users write, and the line of each key: `tomllib` returns values without positions.

The lines are found in a text that has been parsed before, so it is valid TOML: those of headers and of keys that stand
at the beginning of a line. What is written inline (`runs = [{name = "a"}]`) has the line of its header or key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from deltaw.documents.objects import Document, is_whole
from deltaw.errors import DeltaWError

KeyPath = tuple[str | int, ...]

_HEADER = re.compile(r"^\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(
    r"""^\s*((?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*="""
)
_PART = re.compile(r"""[A-Za-z0-9_-]+|"((?:[^"\\]|\\.)*)"|'([^']*)'""")


@dataclass(frozen=True)
class Toml:
    """A TOML text, read.

    Attributes:
        table: Its top-level table.
        lines: The line (from 1) of each table and key.
    """

    table: Document
    lines: Mapping[KeyPath, int]

    def line(self, path: KeyPath) -> int:
        """The line of a key, or of the nearest table that holds it."""
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]

    def where(self, path: KeyPath) -> str:
        """`file:line` of a key."""
        return f"{self.table.where}:{self.line(path)}"


def parse_toml(text: str, where: str, *, error: type[DeltaWError]) -> Toml:
    """Read a TOML text.

    Raises:
        DeltaWError: It is not TOML, nested too deeply, or a whole number has more than the 64 bits that TOML allows.
    """
    import tomllib

    try:
        found = tomllib.loads(text)
    except RecursionError as e:
        raise error(f"{where}: not valid TOML: nested too deeply") from e
    except ValueError as e:
        raise error(f"{where}: not valid TOML: {e}") from e
    inside: list[object] = [found]
    while inside:
        value = inside.pop()
        if isinstance(value, Mapping):
            inside.extend(value.values())
        elif isinstance(value, list):
            inside.extend(value)
        elif isinstance(value, int) and not (isinstance(value, bool) or is_whole(value)):
            raise error(f"{where}: not valid TOML: a whole number has {value.bit_length()} bits; expected at most 63")
    return Toml(Document(found, where, error), lines_of(text))


def lines_of(text: str) -> dict[KeyPath, int]:
    """The line (from 1) of each table and key: `("runs", 2, "scores", "learning")` → 31.

    Args:
        text: A valid TOML document.
    """
    lines: dict[KeyPath, int] = {(): 1}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
    closing = ""  # the delimiter of a multi-line string that is open
    depth = 0  # of brackets of an array that is open
    for number, line in enumerate(text.splitlines(), start=1):
        if closing:
            closing = "" if closing in line else closing
            continue
        if depth == 0 and (header := _HEADER.match(line)):
            table = _enter(header, counts)
            lines.setdefault(table, number)
            continue
        if depth == 0 and (key := _KEY.match(line)):
            lines.setdefault(table + _parts(key.group(1)), number)
        bare, closing = _without_strings(line)
        depth = max(0, depth + sum(map(bare.count, "[{")) - sum(map(bare.count, "]}")))
    return lines


def _enter(header: re.Match[str], counts: dict[KeyPath, int]) -> KeyPath:
    """The path of a header; an array of tables (`[[runs]]`) gets the index of its new element."""
    path: KeyPath = ()
    parts = _parts(header.group(2))
    for part in parts[:-1]:
        path = (*path, part)
        if path in counts:  # `[runs.scores]` belongs to the last run
            path = (*path, counts[path] - 1)
    path = (*path, parts[-1])
    if header.group(1) == "[[":
        counts[path] = counts.get(path, 0) + 1
        path = (*path, counts[path] - 1)
    return path


def _parts(dotted: str) -> KeyPath:
    return tuple(next((g for g in m.groups() if g is not None), m.group()) for m in _PART.finditer(dotted))


def _without_strings(line: str) -> tuple[str, str]:
    """The line without its strings and comment, and the delimiter of a multi-line string left open."""
    for quote in ('"""', "'''"):
        while (start := line.find(quote)) >= 0:
            end = line.find(quote, start + 3)
            if end < 0:
                return line[:start], quote
            line = line[:start] + line[end + 3 :]
    line = re.sub(r"""\"(?:[^"\\]|\\.)*\"|'[^']*'""", "", line)
    return line.split("#", 1)[0], ""
