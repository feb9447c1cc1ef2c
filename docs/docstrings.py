"""How the reference reads docstrings: `rows, cols: The shape.` describes each of both."""

from __future__ import annotations

import re

import griffe

# The names, and the text with its continuation lines, which are indented further.
SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)$", re.MULTILINE)


class SharedLines(griffe.Extension):
    """One line for each name that a line of a docstring describes."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called for every module, class, function and attribute that is read."""
        if obj.docstring is not None:
            obj.docstring.value = SHARED.sub(each, obj.docstring.value)


def each(line: re.Match[str]) -> str:
    """`a, b: text` as `a: text` and `b: text`."""
    return "\n".join(f"{line[1]}{name}: {line[3]}" for name in line[2].split(", "))
