"""What a module's matrix multiplies: the rows x of a linear layer's input, the patches of a convolution's."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.functional import pad

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
WRAPPED = ".base_layer"  # peft's name for the layer that an adapter wraps


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies its input by a matrix: `nn.Linear`, or transformers' `Conv1D`."""
    return isinstance(module, nn.Linear) or stores_inputs_first(module)


def stores_inputs_first(module: nn.Module) -> bool:
    """Whether a module is transformers' `Conv1D`, whose weight is inputs × outputs."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_observed(module: nn.Module) -> bool:
    """Whether the inputs of a module's matrix are known from what it is called with."""
    if isinstance(module, Convolution):
        return module.groups == 1  # the groups of one weight meet different inputs: there is no one C
    return is_linear(module) or isinstance(module, nn.Embedding)


def dimension(module: nn.Module) -> int:
    """How many entries an input of a module's matrix has; of an embedding the number of its rows."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if isinstance(module, nn.Embedding):
        return module.num_embeddings
    if isinstance(module, nn.Linear):
        return module.in_features
    return weight.shape[0] if not isinstance(module, Convolution) else weight[0].numel()


# Of a module's call: whatever it is called with.
def given(args: tuple[object, ...], kwargs: dict[str, object]) -> Tensor | None:
    """The input that a module was called with: its first argument, whatever its name."""
    found = next(iter((*args, *kwargs.values())), None)
    return found if isinstance(found, Tensor) else None


def rows(module: nn.Module, x: Tensor, kept: Tensor | None) -> Tensor:
    """The inputs of a linear layer's or a convolution's matrix, as rows.

    Args:
        module: The layer.
        x: What it was called with.
        kept: Which tokens are text and not padding, (batch, length); None for all.

    Returns:
        (N, n) of x's dtype.
    """
    if isinstance(module, Convolution):
        return patches(module, x)
    x = x.detach()
    flat = x.reshape(-1, x.shape[-1])
    return flat if kept is None or not fits(x.shape[:-1], kept) else flat[kept.reshape(-1).to(flat.device)]


def fits(leading: Iterable[int], kept: Tensor) -> bool:
    """Whether leading dimensions are those of the mask, or all of its tokens in a row."""
    shape = tuple(leading)
    return shape in {tuple(kept.shape), (kept.numel(),)}


def patches(module: Convolution, x: Tensor) -> Tensor:
    """What a convolution's matrix out × (in·kernel) multiplies, one row for each place of the kernel."""
    spatial = len(module.kernel_size)
    x = x.detach()
    x = x if x.ndim == spatial + 2 else x[None]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = pad(x, module._reversed_padding_repeated_twice, mode)  # what the module itself does for every kind of padding
    for i, (size, stride, step) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        x = x.unfold(2 + i, step * (size - 1) + 1, stride)[..., ::step]
    places, kernel = range(2, 2 + spatial), range(2 + spatial, 2 + 2 * spatial)
    x = x.permute(0, *places, 1, *kernel)
    return x.reshape(-1, module.weight[0].numel())
