"""A view of a stored tensor: the matrix, outputs × inputs, that is analysed."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaw.types import Handle, View


def matrix(handle: Handle, view: View) -> Tensor:
    """The matrix of a stored tensor that is analysed: outputs × inputs; 1-D, 0-d and empty tensors as 1-D."""
    if view.expert is not None:
        tensor = handle.read(slice(view.expert, view.expert + 1))[0]
    else:
        tensor = handle.read(None if view.crop is None else slice(0, view.crop))
    if tensor.ndim < 2 or not tensor.numel():  # no entries: no rows and columns either
        return tensor.reshape(-1)
    tensor = tensor.reshape(tensor.shape[0], -1)
    return outputs(tensor.T if view.transposed else tensor, view)


def outputs(x: Tensor, view: View) -> Tensor:
    """The outputs of one part of a fused tensor."""
    if view.rows is None:
        return x
    return torch.cat([x[start:stop] for start, stop in view.rows])
