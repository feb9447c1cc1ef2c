"""What the two sides of an analysis are called."""

from __future__ import annotations

import re

from deltaw.reports.text import visible
from deltaw.results.sources import Source

# File names that say nothing of the model.
GENERIC = re.compile(r"(model|pytorch_model|adapter_model|diffusion_pytorch_model|consolidated|weights)\b.*\.\w+$")
# Folders that are called so whatever is in them: the one above says more.
VAGUE = re.compile(
    r"(models?|weights|model_weights|checkpoints?|adapters?|merged|outputs?|results|final\w*|best\w*|last|latest|main|"
    r"base|ft|finetuned|[0-9a-f]{40}|(checkpoint|step|epoch|global_step)[-_]?\d+)$",
    re.IGNORECASE,
)


def name_of(side: Source | None, unnamed: str = "in memory") -> str:
    """A side by its id, the last part of its absolute path, or the last two of a relative one or where one says little.

    `unnamed` where it has neither.
    """
    return name_at(side.path if side is not None else "") or unnamed


def name_at(path: str) -> str:
    """The same of a path."""
    parts = _parts(path)
    short = path.startswith("/") and bool(parts) and not VAGUE.match(parts[-1])
    return visible("/".join(parts[-1 if short else -2 :]))


def names_of(base: Source | None, ft: Source, unnamed: str = "no base") -> tuple[str, str]:
    """Both sides, each with the folder above where they would be called the same."""
    names = name_of(base, unnamed), name_of(ft)
    if base is not None and names[0] == names[1] and base.path != ft.path:
        longer = [
            visible("/".join(_parts(side.path)[-2:])) or name for side, name in zip((base, ft), names, strict=True)
        ]
        return longer[0], longer[1]
    return names


def _parts(path: str) -> list[str]:
    parts = [part for part in path.rstrip("/").split("/") if part]
    return parts[:-1] if len(parts) > 1 and GENERIC.match(parts[-1]) else parts
