"""How PEFT stores the two factors of a module: their names, shapes and orientation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import prod
from typing import TYPE_CHECKING

from deltaw.checkpoints import numeric
from deltaw.edits.placement import PairTarget, Whole
from deltaw.tensors.names import PEFT_PREFIX
from deltaw.tensors.tensorfile import OutputTensor
from deltaw.types import Handle

if TYPE_CHECKING:
    from torch import Tensor

Read = Callable[[str], "tuple[Tensor, Tensor]"]  # B (m, r) and A (r, n) of a pair, by its key


def factor_entries(target: PairTarget, rank: int, dtype: str, read: Read) -> Iterator[OutputTensor]:
    """The tensors of one target.

    Args:
        target: The module or parameter.
        rank: Of its pair.
        dtype: That they are stored in.
        read: Reads the factors of a matrix.
    """
    m, n = target.pairs[0].shape
    if target.flipped:
        m, n = n, m
    count = len(target.pairs)
    at = PEFT_PREFIX + target.module + ".base_layer" * target.depth

    def oriented(key: str) -> tuple[Tensor, Tensor]:
        B, A = read(key)
        return (A.T, B.T) if target.flipped else (B, A)

    def up() -> Tensor:
        import torch

        parts = [oriented(p.key)[0] for p in target.pairs]
        return torch.stack(parts, dim=2).reshape(m, rank * count)  # experts vary fastest

    def down() -> Tensor:
        import torch

        return torch.cat([oriented(p.key)[1] for p in target.pairs])

    if target.form == "embedding":
        yield OutputTensor(f"{at}.lora_embedding_A", dtype, (rank, m), lambda: up().T)
        yield OutputTensor(f"{at}.lora_embedding_B", dtype, (n, rank), lambda: down().T)
        return
    a: tuple[int, ...] = (count * rank, n)
    b: tuple[int, ...] = (m, count * rank)
    if target.form == "conv":
        inputs = n // prod(target.kernel)
        a, b = (rank, inputs, *target.kernel), (m, rank, *(1 for _ in target.kernel))
    yield OutputTensor(f"{at}.lora_A.weight", dtype, a, lambda: down().reshape(a))
    yield OutputTensor(f"{at}.lora_B.weight", dtype, b, lambda: up().reshape(b))


def whole_entries(whole: Sequence[Whole], targets: Sequence[PairTarget]) -> Iterator[OutputTensor]:
    """The tensors that are stored as they are; a bias of a module with pairs lies below them."""
    wrappings: Mapping[str, int] = {t.module: _wrappings(t, targets) for t in targets}
    for stored in whole:
        for name, handle in stored.tensors.items():
            module, _, leaf = name.rpartition(".")
            below = ".base_layer" * wrappings.get(module, 0) if stored.is_bias else ""
            dtype = numeric(handle.dtype)
            yield OutputTensor(
                f"{PEFT_PREFIX}{module}{below}.{leaf}", dtype, handle.shape, partial(_read, handle, dtype)
            )


def _read(handle: Handle, dtype: str) -> Tensor:
    import torch

    kept: torch.dtype = getattr(torch, dtype)
    return handle.read().to(kept)


def _wrappings(target: PairTarget, targets: Sequence[PairTarget]) -> int:
    """How often PEFT wraps the module of a target."""
    return sum(t.module == target.module for t in targets)
