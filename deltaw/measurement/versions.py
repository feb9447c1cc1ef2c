"""The versions that decide the numbers."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata

PACKAGES = ("deltaw", "torch", "numpy", "scipy", "pandas", "safetensors", "peft", "transformers")


def versions() -> dict[str, str]:
    """The version of Python and of every installed library that decides the numbers."""
    return dict(_installed())


@cache  # each is a file to parse, and they do not change while a process lives
def _installed() -> Mapping[str, str]:
    out = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            out[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return out
