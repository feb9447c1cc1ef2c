"""Where a key stands in a TOML text: `tomllib` returns values without positions, and a message needs the line.

The text has been parsed before, so it is valid TOML; this only has to find the lines of headers and of keys that
stand at the beginning of a line. What is written inline (`runs = [{name = "a"}]`) has the line of its header or key.
"""

from __future__ import annotations

import re

Path = tuple[str | int, ...]

_HEADER = re.compile(r"^\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(
    r"""^\s*((?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*="""
)
_PART = re.compile(r"""[A-Za-z0-9_-]+|"((?:[^"\\]|\\.)*)"|'([^']*)'""")


def lines_of(text: str) -> dict[Path, int]:
    """The line (from 1) of each table and key: `("runs", 2, "scores", "learning")` → 31.

    Args:
        text: A valid TOML document.
    """
    lines: dict[Path, int] = {(): 1}
    counts: dict[Path, int] = {}
    table: Path = ()
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


def line_of(lines: dict[Path, int], path: Path) -> int:
    """The line of a key, or of the nearest table that holds it."""
    while path not in lines:
        path = path[:-1]
    return lines[path]


def _enter(header: re.Match[str], counts: dict[Path, int]) -> Path:
    """The path of a header; an array of tables (`[[runs]]`) gets the index of its new element."""
    path: Path = ()
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


def _parts(dotted: str) -> Path:
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
