"""Memory for large tensors."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

LARGE = 1 << 22  # bytes from which on NumPy asks for large pages


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """A tensor of any numbers, to be filled.

    On a CPU NumPy has the memory: it asks the system for large pages, torch does not. Touching 100 MB of small ones for
    the first time takes as long as subtracting what is written there.

    Args:
        shape: Its shape.
        dtype: Its dtype.
        device: Where it is.
    """
    size = prod(shape) * dtype.itemsize
    if size < LARGE or torch.device(device).type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(size, dtype=np.uint8)).view(dtype).reshape(shape)
