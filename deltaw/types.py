"""The objects that flow: a tensor handle, an adapter's update, a pair, a ΔW, a spectrum.

Only `Handle.read` and `Update.delta` touch bytes; everything else here is a description that costs nothing
and can be sent to another process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Cell: TypeAlias = str | int | float | None  # what a row holds in one column
JsonValue: TypeAlias = (  # what JSON holds
    "str | int | float | bool | Sequence[JsonValue] | Mapping[str, JsonValue] | None"
)
OptionValue: TypeAlias = bool | int | float | str | Sequence[str | int | float]  # of an option, a hyperparameter
Row: TypeAlias = Mapping[str, Cell]  # column to value
Method = Literal["exact", "low_rank", "estimate"]
ENOUGH = 0.9  # of the numbers of the base
Route = Literal["dense", "factored", "unchanged", "vector"]


def is_option_value(value: object) -> TypeGuard[OptionValue]:
    """A text, a number, true or false, or a list of texts and numbers."""
    if isinstance(value, (list, tuple)):
        return all(isinstance(v, (str, int, float)) for v in value)
    return isinstance(value, (bool, int, float, str))


def times(shape: Sequence[int]) -> str:
    """A shape in words: `4×16`; `scalar` without dimensions."""
    return "×".join(map(str, shape)) or "scalar"


def floored_percent(share: float) -> str:
    """`38.6 %`: a share below all, never rounded up to more than it is."""
    return f"{math.floor(1000 * share) / 10:.3g} %"


def counted(count: int, one: str, many: str = "") -> str:
    """`1 tensor`, `1,024 tensors`; `many` where the plural takes more than an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


class Handle(Protocol):
    """A stored tensor that is described without being read."""

    @property
    def name(self) -> str:
        """The tensor's name in its checkpoint."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The stored shape."""

    @property
    def dtype(self) -> str:
        """The stored dtype, by torch's name without `torch.`: `bfloat16`, `float32`, `int64`."""

    @property
    def nbytes(self) -> int:
        """The stored size in bytes."""

    @property
    def storage(self) -> Hashable:
        """Equal for two tensors of one checkpoint that are the same memory (tied); unique otherwise."""

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """The tensor as stored, on the CPU; with `rows`, only those of its first dimension.

        Raises:
            CheckpointError: The bytes cannot be read.
        """


class Factors(NamedTuple):
    """ΔW = B·A that is never multiplied out: B is (m, r) with the scaling folded in, A is (r, n)."""

    B: torch.Tensor
    A: torch.Tensor

    @property
    def mT(self) -> Factors:  # noqa: N802 (as a tensor has it)
        """ΔWᵀ = Aᵀ·Bᵀ."""
        return Factors(self.A.mT, self.B.mT)


class Update(Protocol):
    """What an adapter does to one base tensor (or to one slice of its first dimension, `expert`)."""

    @property
    def name(self) -> str:
        """The base tensor that is changed, by the base's name."""

    @property
    def expert(self) -> int | None:
        """Index along the first dimension of a 3-D base tensor, or None for the whole tensor."""

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of ΔW, outputs × inputs (the base's stored matrix, transposed if `transposed`)."""

    @property
    def transposed(self) -> bool:
        """Whether the base stores this matrix as inputs × outputs."""

    @property
    def factored(self) -> bool:
        """Whether `delta` returns `Factors`."""

    @property
    def needs_base(self) -> bool:
        """Whether `delta` needs W0."""

    @property
    def adapter_type(self) -> str:
        """`lora`, `dora`, `mora`, or peft's name of the method in lower case."""

    @property
    def rank(self) -> int | None:
        """The adapter's rank, where the method has one."""

    @property
    def scaling(self) -> float | None:
        """The factor applied to the product of the stored factors, where the method has one."""

    def delta(self, base: torch.Tensor | None) -> torch.Tensor | Factors:
        """ΔW as a matrix (outputs × inputs; 1-D for a bias) or as its factors, in float64.

        Args:
            base: W0 as stored, (m, n) after transposition; None only if not `needs_base`.

        Raises:
            AdapterError: The stored tensors cannot be read, or do not fit.
        """


def is_update(ft: Handle | Update) -> TypeGuard[Update]:
    """Whether the fine-tuned side of a pair is an adapter's update and not a stored tensor."""
    return hasattr(ft, "delta")


def is_handle(ft: Handle | Update) -> TypeGuard[Handle]:
    """Whether the fine-tuned side of a pair is a stored tensor."""
    return hasattr(ft, "read")


@dataclass(frozen=True)
class View:
    """Which matrix of a stored tensor is analysed. Applied in the order of the fields."""

    crop: int | None = None  # only the first rows of the stored tensor: a resized vocabulary
    expert: int | None = None  # one index of the first dimension of a 3-D tensor
    transposed: bool = False  # stored inputs × outputs: the analysed matrix is outputs × inputs
    rows: tuple[tuple[int, int], ...] | None = None  # ranges [start, stop) of outputs: a part of a fused tensor
    part: str = ""  # what the slice is: q, k, v, gate, up, expert 3


def matrix_key(name: str, part: str) -> str:
    """The key of a matrix among spectra and in a journal: the name, or the JSON text of name and part.

    No tensor that is called `w[expert 0]` can take the place of a part of `w`.
    """
    return json.dumps([name, part], ensure_ascii=False) if part else name


def matrix_label(name: str, part: str) -> str:
    """A matrix for people: the name, with the part in brackets if there is one."""
    return f"{name}[{part}]" if part else name


@dataclass(frozen=True)
class Pair:
    """One unit of work: two handles (or a handle and an adapter's update) and the matrix to look at."""

    name: str
    base: Handle | None  # None with `--no-base`
    ft: Handle | Update
    view: View = field(default_factory=View)

    @property
    def key(self) -> str:
        """Unique in an analysis, see `matrix_key`."""
        return matrix_key(self.name, self.view.part)

    @property
    def label(self) -> str:
        """What people read, see `matrix_label`."""
        return matrix_label(self.name, self.view.part)

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs) of the matrix that it stands for; (n, 1) for a vector, (1, 1) for a scalar."""
        view = self.view
        if is_update(self.ft):
            rows, cols = self.ft.shape  # an update's shape is the matrix's
        else:
            shape = self.ft.shape
            if view.crop is not None:
                shape = (view.crop, *shape[1:])
            if view.expert is not None:
                shape = shape[1:]
            rows, cols = (shape[0] if shape else 1), prod(shape[1:])
            if view.transposed:
                rows, cols = cols, rows
        if view.rows is not None:
            rows = sum(stop - start for start, stop in view.rows)
        return rows, cols

    @property
    def ndim(self) -> int:
        """Dimensions of the stored tensor."""
        return len(self.ft.shape if self.base is None else self.base.shape)

    @property
    def route(self) -> Route:
        """The route that it will take unless both sides turn out to be the same bytes."""
        if self.ndim < 2 or not prod(self.ft.shape if self.base is None else self.base.shape):
            return "vector"
        return "factored" if is_update(self.ft) and self.ft.factored else "dense"

    @property
    def dtypes(self) -> tuple[str, str]:
        """The stored dtypes of the base and of the fine-tuned tensor; empty without one, and for an update."""
        ft = self.ft.dtype if is_handle(self.ft) else ""
        return (self.base.dtype if self.base is not None else ""), ft


class Reason(StrEnum):
    """Why a tensor has no row. Some reasons have a subject: the tensor it is tied to, the format, what went wrong."""

    ONLY_IN_BASE = "only_in_base"
    ONLY_IN_FT = "only_in_ft"
    SHAPE_MISMATCH = "shape_mismatch"
    NOT_FLOATING = "not_floating"
    TIED_TO = "tied_to"
    EXCLUDED = "excluded"
    QUANTISED = "quantised"
    UNSUPPORTED = "unsupported"
    FAILED = "failed"
    NEEDS_BASE = "needs_base"
    NOT_A_WEIGHT = "not_a_weight"
    NO_DELTA = "no_delta"
    EMPTY = "empty"
    BASE_CHANGED = "base_changed"
    BASE_CHANGED_AT_INIT = "base_changed_at_init"


@dataclass(frozen=True)
class Skipped:
    """A tensor without a row, and why.

    Attributes:
        name: The tensor.
        because: Why, in one word.
        detail: What was found, and the way out.
        subject: Of the reason: the tensor it is tied to, the format of its codes, what went wrong.
    """

    name: str
    because: Reason
    detail: str = ""
    subject: str = ""

    @property
    def reason(self) -> str:
        """Why, in words: `excluded`, `tied_to NAME`, `quantised: FORMAT`."""
        if not self.subject:
            return self.because.value
        return f"{self.because.value}{' ' if self.because is Reason.TIED_TO else ': '}{self.subject}"

    def to_dict(self) -> dict[str, str]:
        """As JSON values: `name`, `reason` (with its subject) and `detail`."""
        return {"name": self.name, "reason": self.reason, "detail": self.detail}


@dataclass(frozen=True)
class Coverage:
    """How much of a model was compared.

    Attributes:
        compared_tensors, tensors: Floating tensors of the base that were compared or are known to be unchanged, and
            all that were asked for. Tied ones count once; integer buffers do not count.
        compared_numbers, numbers: The same in numbers.
        share: compared_numbers over numbers; NaN where none was asked for.
        ft_tensors, ft_numbers: Of the fine-tuned side.
    """

    compared_tensors: int = 0
    tensors: int = 0
    compared_numbers: int = 0
    numbers: int = 0
    share: float = field(init=False)
    ft_tensors: int = 0
    ft_numbers: int = 0

    @property
    def partial(self) -> bool:
        """Whether so little was compared that a sentence about the model would be one about a part of it."""
        return self.share < ENOUGH

    def __post_init__(self) -> None:
        share = self.compared_numbers / self.numbers if self.numbers else math.nan
        object.__setattr__(self, "share", share)  # frozen: a field, so that it is written with the others


@dataclass(frozen=True)
class IntruderCount:
    """How many intruder dimensions one matrix has, by one definition of them.

    Attributes:
        key: Of the matrix.
        k, epsilon: The top k directions of W were looked at, and a lower cosine makes an intruder.
        intruders, intruders_right: How many there are, on the left and on the right.
        intruders_null: How many there would be if the k directions pointed anywhere.
    """

    key: str
    k: int
    epsilon: float
    intruders: int
    intruders_right: int
    intruders_null: float


class Interval(NamedTuple):
    """An estimate with the 95 % interval that it comes with."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one ΔW, and how they were obtained.

    Attributes:
        values: Singular values, descending, float64. All k = min(rows, cols) of them if `complete`; else the
            leading ones that are known.
        rows, cols: The shape of the matrix.
        method: `exact`: all values. `low_rank`: the leading values, certified that nothing else stands above
            rounding. `estimate`: the leading values, and `estimates` for what depends on the rest.
        energy: Σσ² over all k values, from the entries where they were seen.
        estimates: Metrics that depend on values that are not in `values`, by column name.
        note: How the values were obtained, in words, where there is something to say (a fallback driver).
    """

    values: Vector
    rows: int
    cols: int
    method: Method = "exact"
    energy: float | None = None
    estimates: Mapping[str, Interval] = field(default_factory=dict)
    note: str = ""

    @property
    def complete(self) -> bool:
        """Whether every singular value is in `values`."""
        return len(self.values) >= min(self.rows, self.cols)
