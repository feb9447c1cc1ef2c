"""One adapter is read: the numbers of its row, its sketches, the signs of sampled entries."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deltaw import metrics
from deltaw.checkpoints import Checkpoint, why_unread
from deltaw.delta.difference import difference
from deltaw.errors import DeltaWError, NotFiniteError, TensorError
from deltaw.measurement.measure import DEFECT, ONE_TENSOR, measure
from deltaw.measurement.options import Options
from deltaw.pairs.selection import Selection
from deltaw.results.rows import number, quoted
from deltaw.spectra import factored_svd, leading_triplets
from deltaw.surveys.opened import OpenedAdapter, fits_alone, open_member
from deltaw.surveys.parts import Looked
from deltaw.surveys.sketches import entries, sketch
from deltaw.tensors.matrix import matrix, outputs
from deltaw.types import Factors, Pair, Vector, is_update

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

log = logging.getLogger("deltaw")

TOP = 16  # leading directions of an update that are compared
SAMPLED = 16_384  # entries of a model whose signs are compared, over all its matrices
NEAR_ZERO = 1e-150  # norms below which squares vanish
NO_DIRECTION = 1e-10  # of σ1: below it a singular vector is rounding


@dataclass(frozen=True)
class SeenMatrix:
    """What is known of one matrix of an adapter.

    Attributes:
        norm, base_norm: ‖ΔW‖F and ‖W0‖F.
        rank: Directions of a factored update; 0 for a dense one.
        sigma: Its leading singular values.
        tensors: Its sketch, signs, and leading directions where it is dense.
    """

    norm: float
    base_norm: float
    rank: int
    sigma: Vector
    effective_rank: float
    energy_at_1: float
    factor_balance: float
    tensors: Mapping[str, Tensor]


class SurveyBase:
    """The base of a survey, with the norms of its matrices as far as they were asked for; safe from several threads.

    Attributes:
        checkpoint: The base; None without one.
        samples: Entries of each matrix whose signs are compared: the same for every adapter.
    """

    def __init__(self, checkpoint: Checkpoint | None) -> None:
        self.checkpoint = checkpoint
        self._norms: dict[str, float] = {}
        self._lock = threading.Lock()
        tensors = checkpoint.tensors.values() if checkpoint is not None else ()
        count = sum(len(h.shape) > 1 for h in tensors)
        self.samples = min(1024, max(64, SAMPLED // count)) if count else 256

    def norm(self, key: str, pair: Pair) -> float:
        """‖W0‖F of a matrix; NaN without one that can be read.

        Raises:
            CheckpointError: The bytes cannot be read.
        """
        import torch

        if pair.base is None or why_unread(pair.base):
            return math.nan
        with self._lock:
            if key not in self._norms:
                W0 = matrix(pair.base, pair.view)
                self._norms[key] = float(torch.linalg.vector_norm(W0, dtype=torch.float64))
            return self._norms[key]


class SeenAdapter(NamedTuple):
    """What came of one adapter: its row, and the tensors of its pairs; None where it has no numbers."""

    looked: Looked
    tensors: Mapping[str, NDArray[np.generic]] | None


def look(base: SurveyBase, source: str, selection: Selection) -> SeenAdapter:
    """Read one adapter; what is wrong with it is a reason in its row, and never the end of a survey.

    Args:
        base: The base.
        source: Path or Hub id.
        selection: Which of its matrices are looked at.
    """
    try:
        opened = open_member(base.checkpoint, source, selection)
    except (DeltaWError, OSError) as e:
        return SeenAdapter(_unusable(source, base, " ".join(str(e).split())), None)
    except Exception as e:  # a defect costs this adapter, never what was read of the others
        log.debug("%s", source, exc_info=True)
        return SeenAdapter(Looked(reason=f"unexpected {type(e).__name__}: {' '.join(str(e).split())} ({DEFECT})"), None)
    about = Looked(
        format=opened.source.format,
        base_name=opened.source.base_name or "",
        unscaled=opened.unscaled,
        parameters=opened.numbers,
    )
    found, failed, untrained = _matrices(base, opened)
    broken = any(isinstance(why, NotFiniteError) for why in failed.values())
    notes = tuple(f"{key}: {' '.join(str(why).split()) or type(why).__name__}" for key, why in failed.items())
    about = replace(about, notes=notes, nonfinite=broken, untrained=untrained, method=_method(opened))
    if failed and not found:
        return SeenAdapter(replace(about, reason=f"no matrix can be read ({notes[0]})"), None)
    return SeenAdapter(_together(about, opened, found), _tensors(found))


def _unusable(source: str, base: SurveyBase, why: str) -> Looked:
    other = base.checkpoint is not None and fits_alone(source)
    return Looked(reason=why or "it cannot be opened", other_base=other)


def _method(opened: OpenedAdapter) -> str:
    """What most of the matrices were changed by."""
    kinds = [p.ft.adapter_type if is_update(p.ft) else "full" for p in opened.pairs.values()]
    return max(sorted(set(kinds)), key=kinds.count, default="")


def _matrices(base: SurveyBase, opened: OpenedAdapter) -> tuple[dict[str, SeenMatrix], dict[str, Exception], int]:
    """What changed, what cannot be read and why, and how many matrices have B = 0."""
    found: dict[str, SeenMatrix] = {}
    failed: dict[str, Exception] = {}
    untrained = 0
    for key, pair in opened.pairs.items():
        try:
            one = _factored(base, key, pair) if pair.route == "factored" else _dense(base, key, pair)
        except ONE_TENSOR as e:
            failed[key] = e
            continue
        if one is None:
            untrained += pair.route == "factored"
        else:
            found[key] = one
    return found, failed, untrained


def _factored(base: SurveyBase, key: str, pair: Pair) -> SeenMatrix | None:
    """From the factors; None where their product is 0.

    Raises:
        DeltaWError: They cannot be read, or are not finite.
    """
    assert is_update(pair.ft)
    value = pair.ft.delta(None)
    assert isinstance(value, Factors)
    value = Factors(outputs(value.B, pair.view), value.A)
    thin = factored_svd(value)
    sigma = thin.S.numpy()
    norm = float(np.linalg.norm(sigma))
    if norm < NEAR_ZERO:
        return None
    half = thin.S.sqrt()
    product = Factors(thin.U * half, half[:, None] * thin.Vh)  # as any other pair with this product, and balanced
    rows, cols = entries(key, pair.shape, base.samples)
    sampled = (product.B[rows] * product.A[:, cols].T).sum(1)
    balance = math.nan
    if pair.ft.scaling is not None and value.B.shape[1] == pair.ft.rank:
        a_sq, b_sq = float(value.A.square().sum()), float(value.B.square().sum())
        balance = metrics.factor_balance(a_sq, b_sq, pair.ft.scaling, float(sigma.sum()))
    return SeenMatrix(
        norm=norm,
        base_norm=base.norm(key, pair),
        rank=value.B.shape[1],
        sigma=sigma[:TOP],
        effective_rank=metrics.effective_rank(sigma),
        energy_at_1=metrics.energy_at(sigma, 1),
        factor_balance=balance,
        tensors={"sketch": sketch(product, norm, key).half(), "signs": sampled.sign().char()},
    )


def _dense(base: SurveyBase, key: str, pair: Pair) -> SeenMatrix | None:
    """From ΔW itself, with the ranks that may be quoted of it; None where nothing changed.

    Raises:
        DeltaWError: It cannot be read, or is not finite.
        TensorError: Its spectrum cannot be found.
    """
    import torch

    device = torch.device("cpu")
    value = difference(pair, device).value
    if value is None or not bool(value.any() if not isinstance(value, Factors) else value.B.any()):
        return None
    if isinstance(value, Factors):
        value = value.B @ value.A
    value = value.double()
    norm = float(torch.linalg.vector_norm(value))
    [measured] = measure([pair], Options(mode="fast"), device)
    if measured.row is None:
        raise TensorError(measured.skipped.subject if measured.skipped else "it cannot be measured")
    row = measured.row
    top = leading_triplets(value, TOP)
    r = int((NO_DIRECTION * top.S[0] < top.S).sum())
    rows, cols = entries(key, (value.shape[0], value.shape[1]), base.samples)
    return SeenMatrix(
        norm=norm,
        base_norm=number(row, "base_fro_norm"),
        rank=0,
        sigma=top.S.numpy(),
        effective_rank=quoted(row, "effective_rank"),
        energy_at_1=quoted(row, "energy_at_1"),
        factor_balance=math.nan,
        tensors={
            "sketch": sketch(value, norm, key).half(),
            "signs": value[rows, cols].sign().char(),
            "left": top.U[:, :r].float(),
            "right": top.Vh[:r].T.float(),
        },
    )


def _together(about: Looked, opened: OpenedAdapter, found: Mapping[str, SeenMatrix]) -> Looked:
    """The matrices of an adapter as arrays."""
    rows = list(found.values())
    sigma = np.zeros((len(rows), TOP))
    for i, row in enumerate(rows):
        sigma[i, : len(row.sigma)] = row.sigma

    def column(name: str) -> Vector:
        return np.array([getattr(row, name) for row in rows], dtype=np.float64)

    return replace(
        about,
        keys=tuple(found),
        shapes=tuple(opened.pairs[key].shape for key in found),
        ranks=tuple(row.rank for row in rows),
        norms=column("norm"),
        base_norms=column("base_norm"),
        sigma=sigma,
        effective_rank=column("effective_rank"),
        energy_at_1=column("energy_at_1"),
        factor_balance=column("factor_balance"),
    )


def _tensors(found: Mapping[str, SeenMatrix]) -> dict[str, NDArray[np.generic]]:
    """Sketches (K, 16, 256) and signs (K, samples) of all, leading directions by the number of the matrix."""
    import torch

    rows = list(found.values())
    if not rows:
        return {}
    out = {name: torch.stack([row.tensors[name] for row in rows]).numpy() for name in ("sketch", "signs")}
    for i, row in enumerate(rows):
        out |= {f"{n}.{i}": row.tensors[n].contiguous().numpy() for n in ("left", "right") if n in row.tensors}
    return out
