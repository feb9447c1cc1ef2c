"""What the two sides of an analysis are called."""

from __future__ import annotations

import re

from deltaw.reports.text import visible
from deltaw.sources import Source

# File names that say nothing of the model.
GENERIC = re.compile(r"(model|pytorch_model|adapter_model|diffusion_pytorch_model|consolidated|weights)\b.*\.\w+$")


def name_of(side: Source | None, unnamed: str = "in memory") -> str:
    """A side by the last two parts of its path, or by its id; `unnamed` where it has neither."""
    path = side.path if side is not None else ""
    parts = path.rstrip("/").split("/")
    if len(parts) > 1 and GENERIC.match(parts[-1]):
        parts = parts[:-1]
    return visible("/".join(parts[-2:])) or unnamed
