"""What measuring one matrix takes here: the real work, timed on small pairs, once for each machine and mode.

A pair of k×k, in which every weight has changed, is measured as `analyze` measures it, for a few k; a taller one of the
same k tells what each further k×k block adds. Between and beyond those sizes costs follow powers of k. Times are CPU
seconds of one thread, so that whoever else is there does not count; on a GPU they are seconds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import time
from bisect import bisect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw.documents import parse_object
from deltaw.errors import CheckpointError
from deltaw.files import cache_directory, replacing
from deltaw.measurement.versions import versions
from deltaw.types import Factors, Pair, is_update

if TYPE_CHECKING:
    import torch

    from deltaw.measurement.options import Options

log = logging.getLogger("deltaw")

# An exact spectrum costs as k³ from some hundred on; an estimate as nothing simple, so that it is timed up to 4096.
SIDES = {"exact": (32, 128, 512, 1024, 2048), "fast": (32, 128, 512, 1024, 2048, 4096)}
TALL = 1024  # the largest k of which a taller matrix is timed too
RANKS = (16, 64)  # of the factors that are timed
RUNS = 2  # the quicker counts: the first also loads what is loaded late


@dataclass(frozen=True)
class UnitCosts:
    """Seconds of one thread, or of one GPU.

    Attributes:
        device: `cpu`, `cuda` or `mps`.
        devices: How many of them are used at a time; 1 for a CPU, whose cores are counted apart.
        squares: Of a k×k matrix, by k.
        blocks: What each further k×k block of a taller matrix adds, by k.
        factored: Of a factored update of 1024×1024 with its base, by its rank.
    """

    device: str
    devices: int
    squares: Mapping[int, float]
    blocks: Mapping[int, float]
    factored: Mapping[int, float]

    def seconds(self, pair: Pair) -> float:
        """Of one pair; of a dense one as if every weight of it had changed, and nothing made its ΔW low-rank."""
        m, n = pair.shape
        k = min(m, n)
        if pair.route == "vector" or k < 1:
            return min(self.squares.values())
        if pair.route == "factored":
            return self._factored(m, n, (pair.ft.rank if is_update(pair.ft) else None) or max(RANKS))
        square = interpolated(self.squares, k)
        largest = max(self.blocks)
        if k in self.blocks or k < largest:
            return square + (max(m, n) / k - 1) * interpolated(self.blocks, k)
        share = self.blocks[largest] / self.squares[largest]
        return square * (1 + (max(m, n) / k - 1) * share)

    def _factored(self, m: int, n: int, rank: int) -> float:
        """QR of both factors is (m + n)·r², reading and summing the base m·n."""
        low, high = RANKS
        qr = max(0.0, self.factored[high] - self.factored[low]) / (2 * TALL * (high**2 - low**2))
        entry = max(0.0, self.factored[low] - qr * 2 * TALL * low**2) / TALL**2
        return qr * (m + n) * rank**2 + entry * m * n


def interpolated(known: Mapping[int, float], k: int) -> float:
    """A cost between two sizes by the power of k that leads from one to the other; beyond the last by the last one.

    Below the first it is that of the first: there, what every matrix costs is all there is.
    """
    sides = sorted(known)
    if k <= sides[0] or len(sides) == 1:
        return known[sides[0]]
    at = min(bisect(sides, k), len(sides) - 1)
    low, high = sides[at - 1], sides[at]
    power = math.log(known[high] / known[low]) / math.log(high / low)
    return known[high] * math.exp(power * math.log(k / high))


def unit_costs(pairs: Sequence[Pair], mode: str, device: str) -> UnitCosts:
    """What is known of this machine, and timed now where it is not known yet; only sizes that the pairs need.

    Args:
        pairs: What is to be measured.
        mode: `exact` or `fast`.
        device: As `analyze` takes it.

    Raises:
        OptionError: There is no such device.
    """
    largest = max((min(p.shape) for p in pairs if p.route == "dense"), default=0)
    sides = SIDES[mode]
    wanted = sides[: max(2, 1 + next((i for i, k in enumerate(sides) if k >= largest), len(sides) - 1))]
    place = _place(mode, device)
    kept = _kept(place)
    if kept is not None and set(wanted) <= set(kept.squares):
        return kept
    log.info("timing matrices of up to %d × %d on this machine, once", wanted[-1], wanted[-1])
    found = measured(wanted, mode, device)
    if place is not None:
        with suppress(OSError):  # it is timed again next time
            place.parent.mkdir(parents=True, exist_ok=True)
            with replacing(place) as temporary:
                temporary.write_text(json.dumps(found.__dict__), encoding="utf-8")
    return found


def measured(sides: Sequence[int], mode: str, device: str) -> UnitCosts:
    """Time the real work on random pairs in bfloat16.

    Raises:
        OptionError: There is no such device.
    """
    import torch
    from threadpoolctl import threadpool_limits

    from deltaw.measurement.options import Options, resolve_devices

    devices = resolve_devices(device)
    on = devices[0]
    options = Options(mode=mode, device=device)
    threads = torch.get_num_threads()
    with threadpool_limits(1, user_api="blas"):
        torch.set_num_threads(1)
        try:
            squares = {k: s for k in sides if (s := _timed(_pair(k, k), options, on)) is not None}
            tall = {k: s for k in squares if k <= TALL and (s := _timed(_pair(2 * k, k), options, on)) is not None}
            factored = {r: s for r in RANKS if (s := _timed(_adapter(r), options, on)) is not None}
        finally:
            torch.set_num_threads(threads)
    blocks = {k: max(tall[k] - squares[k], 0.01 * squares[k]) for k in tall}  # never nothing, which has no power
    return UnitCosts(on.type, len(devices), squares, blocks, factored)


def _timed(pair: Pair, options: Options, device: torch.device) -> float | None:
    """The seconds of the quickest run; None where it cannot be measured, as memory is short: smaller ones then tell."""
    from deltaw.measurement.measure import measure

    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(RUNS):
        started = clock()
        found = measure([pair], options, device)
        best = min(best, clock() - started)
        if found[0].row is None:
            log.info("a matrix of %d × %d could not be timed: %s", *pair.shape, found[0].skipped)
            return None
    return best


def _pair(m: int, n: int) -> Pair:
    import torch

    from deltaw.checkpoints.memory import MemoryHandle

    g = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(m, n, generator=g)
    ft = base + 1e-3 * torch.randn(m, n, generator=g)
    sides = [MemoryHandle("weight", side.to(torch.bfloat16)) for side in (base, ft)]
    return Pair("weight", sides[0], sides[1])


@dataclass(frozen=True)
class _Thin:
    """A factored update of 1024×1024; an `Update`."""

    rank: int
    name: str = "weight"
    expert: None = None
    shape: tuple[int, int] = (TALL, TALL)
    transposed: bool = False
    factored: bool = True
    needs_base: bool = False
    adapter_type: str = "lora"
    scaling: float = 1.0

    def delta(self, base: torch.Tensor | None) -> Factors:
        """Random factors."""
        import torch

        g = torch.Generator().manual_seed(0)
        B, A = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((TALL, self.rank), (self.rank, TALL)))
        return Factors(B, A)


def _adapter(rank: int) -> Pair:
    return Pair("weight", _pair(TALL, TALL).base, _Thin(rank))


def _place(mode: str, device: str) -> Path | None:
    """Where the costs of this machine are kept: by its processor, the libraries, and the GPUs that may be used."""
    about = (
        platform.node(),
        platform.processor(),
        _processor(),
        os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        versions(),
    )
    name = hashlib.sha256(repr((mode, device, *about)).encode()).hexdigest()[:16]
    try:
        return cache_directory() / "unit-costs" / f"{name}.json"
    except RuntimeError:  # no home directory
        return None


def _processor() -> str:
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in lines if line.startswith("model name")), "")
    return ""


def _kept(place: Path | None) -> UnitCosts | None:
    """What an earlier process timed; None where that cannot be used."""
    if place is None:
        return None
    try:
        about = parse_object(place.read_text(encoding="utf-8"), str(place))
        tables = [
            {int(k): inner.number(k) for k in inner} for inner in map(about.inner, ("squares", "blocks", "factored"))
        ]
        device, devices = about.text("device"), about.whole("devices")
    except (OSError, ValueError, CheckpointError):
        return None
    whole = devices > 0 and all(table and all(0 < v < float("inf") for v in table.values()) for table in tables)
    return UnitCosts(device, devices, *tables) if whole and set(RANKS) <= set(tables[2]) else None
