"""Where the random start of a solver comes from."""

from __future__ import annotations

import hashlib

import torch


def seeded(device: torch.device, name: str) -> torch.Generator:
    """The numbers of one matrix: by its name alone, so that no result depends on batch, order or part.

    By its name and not one seed for all: errors of estimates would then be those of the same probes in every layer, and
    would not average out over a model.

    Args:
        device: Where the numbers are made.
        name: Of the matrix, with its part: `Pair.key`.
    """
    seed = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "little") >> 1
    return torch.Generator(device=device).manual_seed(seed)
