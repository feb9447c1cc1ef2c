"""Where the random start of a solver comes from."""

from __future__ import annotations

import torch


def seeded(device: torch.device) -> torch.Generator:
    """The same numbers for every matrix: a result does not depend on the order in which the threads come by."""
    return torch.Generator(device=device).manual_seed(0)
