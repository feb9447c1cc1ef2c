"""A map over the matrices of an edit, shared out as those of an analysis are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from deltaw.errors import DeltaWError
from deltaw.measurement.cost import bytes_needed, work
from deltaw.measurement.engines.sharing import Workers
from deltaw.measurement.loop import Progress
from deltaw.types import Pair

if TYPE_CHECKING:
    import torch

Out = TypeVar("Out")
Show = Callable[[Progress], None]


def each(
    pairs: Sequence[Pair],
    function: Callable[[Pair, torch.device], Out],
    workers: Workers,
    progress: Show | None,
    *,
    on_data: bool = False,
) -> dict[str, Out | str]:
    """What the function makes of each pair by its key; a text where one cannot be used.

    Args:
        pairs, function: The matrices, and what is done with each on a device.
        workers: Where.
        progress: Called after each.
        on_data: Whether the inputs of the matrices are met as well, which takes memory.

    Raises:
        Exception: Anything but a `DeltaWError` of one matrix.
    """
    total, done = work(pairs), 0.0
    out: dict[str, Out | str] = {}

    def one(pair: Pair, device: torch.device) -> Out | str:
        try:
            return function(pair, device)
        except DeltaWError as e:
            return " ".join(str(e).split())

    def finished(pair: Pair, found: Out | str) -> None:
        nonlocal done
        out[pair.key] = found
        done += work([pair])
        if progress is not None:
            progress(Progress(len(out), len(pairs), done, total, pair.label))

    workers.share_out(
        one,
        pairs,
        finished,
        work=lambda pair: work([pair]),
        need=lambda pair: bytes_needed([pair], on_data=on_data),
        total=total,
        most=len(pairs),
    )
    return out
