"""Which rank each matrix gets: by number, by share of the energy above the noise, by the noise edge, or by a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from deltaw.errors import OptionError
from deltaw.types import JsonValue, Vector

# Share of the energy that may be missing from "all": a merge in float32 leaves its own arithmetic in ΔW, some 1e-7 of
# σ1 in each of many directions, which stands above the rounding of storing the sum once.
EXACT = 1e-12
DTYPES = ("bfloat16", "float16", "float32")
SAVING = ("auto", "none")


@dataclass(frozen=True)
class Policy:
    """How the ranks are chosen: exactly one of the first four, within the last two.

    Attributes:
        rank: This many directions of every matrix, noise or not.
        energy: The fewest directions that hold this share of the energy above the noise edge.
        above_noise: All directions above the noise edge.
        parameters: As many numbers in the whole adapter, spent where they keep most energy.
        max_rank: No more of any matrix.
        ranks: Only these ranks.

    Raises:
        OptionError: None or several are given, or a value cannot be used.
    """

    rank: int | None = None
    energy: float | None = None
    above_noise: bool = False
    parameters: int | None = None
    max_rank: int | None = None
    ranks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        given = [name for name, on in self._ways().items() if on]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise OptionError(
                f"expected exactly one of --rank, --energy, --above-noise and --parameters; found {found}"
            )
        for name, value in (("rank", self.rank), ("parameters", self.parameters), ("max_rank", self.max_rank)):
            if value is not None and value < 1:
                raise OptionError(f"{name} is {value}; expected at least 1")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise OptionError(f"energy is {self.energy}; expected a share above 0 and up to 1")
        if any(r < 1 for r in self.ranks):
            raise OptionError(f"ranks are {', '.join(map(str, self.ranks))}; expected whole numbers above 0")
        if self.ranks and not self.allowed:
            raise OptionError(f"max_rank is {self.max_rank}, below the least of the ranks, {min(self.ranks)}")

    def _ways(self) -> dict[str, bool]:
        return {
            "--rank": self.rank is not None,
            "--energy": self.energy is not None,
            "--above-noise": self.above_noise,
            "--parameters": self.parameters is not None,
        }

    @property
    def allowed(self) -> tuple[int, ...]:
        """The given ranks that `max_rank` leaves, ascending; empty where every rank may be taken."""
        return tuple(sorted({r for r in self.ranks if self.max_rank is None or r <= self.max_rank}))

    @property
    def keeps_noise(self) -> bool:
        """Whether directions below the noise edge are kept, too: only where their number was asked for."""
        return self.rank is not None

    @property
    def needs_spectrum(self) -> bool:
        """Whether the singular values decide the rank."""
        return self.rank is None

    def wanted(self, spectra: Sequence[Vector]) -> int:
        """The rank of one module, before the budget; one spectrum for a matrix, one per expert for a stack.

        Args:
            spectra: The singular values above the noise edge, each descending.
        """
        if self.rank is not None:
            return self.snapped(self.rank)
        share = 1.0 if self.energy is None else self.energy
        return self.snapped(max((directions_for(s, share) for s in spectra), default=0))

    def snapped(self, rank: int) -> int:
        """The rank that is allowed: the least that is enough, or the largest."""
        if rank == 0:
            return 0
        if self.allowed:
            return next((r for r in self.allowed if r >= rank), self.allowed[-1])
        return rank if self.max_rank is None else min(rank, self.max_rank)

    def to_dict(self) -> dict[str, JsonValue]:
        """What was given, as JSON values."""
        named: dict[str, JsonValue] = {
            "rank": self.rank,
            "energy": self.energy,
            "above_noise": self.above_noise or None,
            "parameters": self.parameters,
            "max_rank": self.max_rank,
            "ranks": list(self.ranks) or None,
        }
        return {name: value for name, value in named.items() if value is not None}


def directions_for(s: Vector, share: float) -> int:
    """The fewest leading directions that hold a share of Σσ².

    Args:
        s: Singular values, descending, (k,).
        share: In (0, 1].
    """
    if not s.size or not s[0]:
        return 0
    kept = np.cumsum((s / s[0]) ** 2)
    return min(len(s), int(np.searchsorted(kept, share * kept[-1] * (1 - EXACT))) + 1)


def menus(policy: Policy, spectra: Sequence[Sequence[Vector]]) -> list[tuple[Vector, Vector]]:
    """For every module the ranks that it may get and the energy that each keeps; none needs more than its signal.

    Args:
        policy: Which ranks are allowed.
        spectra: For every module its matrices' singular values above the noise edge.
    """
    out = []
    for matrices in spectra:
        most = max((len(s) for s in matrices), default=0)
        energy = np.zeros(most + 1)
        for s in matrices:
            kept = np.concatenate([[0.0], np.cumsum(np.asarray(s, dtype=np.float64) ** 2)])
            energy += np.pad(kept, (0, most + 1 - len(kept)), mode="edge")
        if policy.allowed:
            enough = next((i for i, r in enumerate(policy.allowed) if r >= most), len(policy.allowed) - 1)
            ranks = np.array(policy.allowed[: enough + 1] if most else (), dtype=np.int64)
        else:
            ranks = np.arange(1, min(most, policy.max_rank or most) + 1)
        out.append((ranks.astype(np.float64), energy[np.minimum(ranks, most)]))
    return out


def is_concave(ranks: Vector, energy: Vector) -> bool:
    """Whether each further rank of a menu costs one more and brings no more than the one before."""
    steps = np.diff(np.concatenate([[0.0], energy]))
    return bool(np.array_equal(ranks, np.arange(1, len(ranks) + 1))) and all(
        b <= a or math.isclose(a, b, rel_tol=1e-9) for a, b in pairwise(steps)
    )


def check_storage(dtype: str, save_modules: str) -> None:
    """How an adapter may be stored.

    Raises:
        OptionError: The dtype of the factors, or what is to be saved whole, is unknown.
    """
    if dtype not in DTYPES:
        raise OptionError(f"dtype {dtype!r} is unknown; expected one of {', '.join(DTYPES)}")
    if save_modules not in SAVING:
        raise OptionError(f"save_modules {save_modules!r} is unknown; expected one of {', '.join(SAVING)}")
