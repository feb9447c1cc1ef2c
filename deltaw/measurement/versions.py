"""The versions that decide the numbers."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

PACKAGES = ("deltaw", "torch", "numpy", "scipy", "pandas", "safetensors", "peft", "transformers")


def versions(*packages: str) -> dict[str, str]:
    """The version of Python and of each of these that is installed; by default of all that decides an analysis."""
    found = {"python": platform.python_version()}
    return found | {p: v for p in packages or PACKAGES if (v := _installed(p)) is not None}


@cache  # each is a file to parse, and they do not change while a process lives
def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
