"""Directories that are there whole or not at all, and keys that say what they hold.

A piece of work is done in a directory beside its place and renamed to it: after a SIGKILL at any point it is either
finished, or done again from the start.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LIBRARIES = ("deltaw", "torch", "transformers", "peft", "accelerate", "tokenizers")  # decide what a training gives


@contextmanager
def finishing(out: Path) -> Iterator[Path]:
    """A fresh directory that becomes `out` when the block ends without an error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if not out.exists():  # else somebody finished the same work meanwhile: the same content
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left; call it only while holding the folder's lock."""
    for stale in folder.glob(".*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)


def key(*parts: Any) -> str:
    """A short digest of plain values: equal for equal content."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_json(path: Path, value: Any) -> None:
    """Write plain values, readably."""
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))
