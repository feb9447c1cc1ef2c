"""What a scheme looks at: the tensors of one module by their last name, and what the config says of quantisation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from deltaw.documents import Document
from deltaw.types import Handle, counted, times

if TYPE_CHECKING:
    import torch

FLOAT8 = frozenset({"float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"})
EXPONENTS = frozenset({"float8_e8m0fnu", "uint8"})  # dtypes in which power-of-two scales are stored
INTEGERS = frozenset({"int8", "uint8", "int16", "uint16", "int32", "uint32"})
CODES = FLOAT8 | INTEGERS
# The formats that are read, as a dtype column says them.
FORMAT = re.compile(
    r"^((fp8|int\d)_(block|tensor|row|g\d+)|mxfp8|mxfp4|nvfp4|nf4|fp4|bnb_int8|(gptq|awq|mlx)_int\d_(row|g\d+)"
    r"|q\d_[01k]|iq\d_(xxs|xs|s|m|nl)|tq\d_0)$"
)


@dataclass(frozen=True)
class Quantisation:
    """What a config says of quantisation, as far as it says it in the types that are expected.

    Attributes:
        method: `quant_method` in lower case: `fp8`, `gptq`, `compressed-tensors`; empty where none is named.
        settings: The settings as they are.
    """

    method: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)  # foreign: read by `integer`, `text`, `block`

    def __bool__(self) -> bool:
        return bool(self.method or self.settings)

    @staticmethod
    def of(config: Document) -> Quantisation:
        """The quantisation of a model's config.json, wherever that model's library writes it."""
        inner = config.values.get("text_config")
        for place in (config.values, inner if isinstance(inner, Mapping) else {}):
            for key in ("quantization_config", "compression_config", "quantization"):
                found = place.get(key)
                if isinstance(found, Mapping):
                    method = found.get("quant_method", "mlx" if key == "quantization" else "")
                    return Quantisation(str(method).lower().replace("_", "-"), found)
        return Quantisation()

    def integer(self, key: str) -> int | None:
        """A positive whole number, or None."""
        value = self.settings.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31 else None

    def text(self, key: str) -> str:
        """A text in lower case, or an empty one."""
        value = self.settings.get(key)
        return value.lower() if isinstance(value, str) else ""

    @property
    def block(self) -> tuple[int, int] | None:
        """The rows and columns that share a scale in block formats."""
        found = _block(self.settings.get("weight_block_size"))
        for weights in self.groups:
            found = found or _block(weights.get("block_structure"))
        return found

    @property
    def rotated(self) -> bool:
        """Whether the weights were rotated before they were quantised (QuaRot, SpinQuant, `transform_config`)."""
        rotations = {"quarot", "spinquant", "quip", "quip-sharp"}
        return bool(self.settings.get("transform_config")) or self.method in rotations

    @property
    def groups(self) -> tuple[Mapping[str, object], ...]:  # foreign, as `settings`
        """The weight schemes of compressed-tensors' `config_groups`."""
        groups = self.settings.get("config_groups")
        values = groups.values() if isinstance(groups, Mapping) else ()
        weights = (g.get("weights") for g in values if isinstance(g, Mapping))
        return tuple(w for w in weights if isinstance(w, Mapping))

    def of_module(self, path: str) -> Quantisation:
        """The settings of one module where the config has some of its own (MLX)."""
        own = self.settings.get(path)
        return Quantisation(self.method, {**self.settings, **own}) if isinstance(own, Mapping) else self


def _block(value: object) -> tuple[int, int] | None:
    if isinstance(value, (list, tuple)) and len(value) == 2:
        rows, cols = value
        if isinstance(rows, int) and isinstance(cols, int) and 0 < rows < 2**31 and 0 < cols < 2**31:
            return rows, cols
    return None


@dataclass(frozen=True)
class ModuleTensors:
    """The tensors of one module by their last name: `weight`, `weight_scale`, `weight.absmax`."""

    path: str
    leaves: Mapping[str, Handle]
    config: Quantisation

    def get(self, *leaves: str) -> Handle | None:
        """The first of some tensors that is there."""
        return next((self.leaves[leaf] for leaf in leaves if leaf in self.leaves), None)

    def named(self, leaf: str) -> str:
        """A tensor's name in the checkpoint."""
        return f"{self.path}.{leaf}" if self.path else leaf

    def weight(self, leaf: str) -> str:
        """The name of the weight that a tensor of codes stands for."""
        return self.named("weight" if leaf in {"qweight", "weight_packed", "_weight_qdata"} else leaf)

    def parts(self, **roles: str) -> dict[str, Handle]:
        """The tensors that are there, by their role."""
        return {role: self.leaves[leaf] for role, leaf in roles.items() if leaf in self.leaves}

    def coded(self) -> Iterator[tuple[str, Handle]]:
        """The tensors whose dtype may be that of codes."""
        return ((leaf, h) for leaf, h in self.leaves.items() if h.dtype in CODES)


class ByteTable(NamedTuple):
    """What codes of one byte stand for, before their scale.

    Attributes:
        numbers: q of every code, (256,) float32.
        variances: The mean square of the rounding inside its cell, (256,) float64.
        ends: −1 for the lowest code of the grid and what lies beyond, 1 for the highest, else 0; (256,) int8.
    """

    numbers: torch.Tensor
    variances: torch.Tensor
    ends: torch.Tensor


class ScaledBytes(NamedTuple):
    """A matrix as it is stored: W = q·scale, where q is a byte's number.

    Attributes:
        codes: (m, n) uint8.
        table: Of the codes.
        scale: One for every block, (⌈m/height⌉, ⌈n/width⌉) float32.
        block: The height and width of a block.
    """

    codes: torch.Tensor
    table: ByteTable
    scale: torch.Tensor
    block: tuple[int, int]


class Values(NamedTuple):
    """Some rows of a weight, and the rounding in them.

    Attributes:
        weight: Finds W as the codes have it, float32.
        variance: Finds the mean square of the rounding inside every entry's cell, float64.
        ends: Finds the outermost codes, behind which a clipped weight may lie at any distance: −1 at the lower end, 1
            at the upper, else 0. None where the format clips nothing.
        group: How many neighbours in a row share a scale, where zero is one of their codes; 0 where groups lie
            otherwise, or where the cell of zero is far too narrow to hold most of a group.
    """

    weight: Callable[[], torch.Tensor]
    variance: Callable[[], torch.Tensor]
    ends: Callable[[], torch.Tensor] | None = None
    group: int = 0


@dataclass(frozen=True)
class Codes:
    """One weight that is stored as codes, with everything that it is stored in.

    Attributes:
        name: The weight's own name, `…q_proj.weight`, as an unquantised checkpoint has it.
        format: What a dtype column says: `fp8_block`, `nf4`, `gptq_int4_g128`.
        shape: The weight's shape; None where the headers do not tell.
        parts: The stored tensors by role: `codes`, `scale`, `zero`, …; each scheme says which.
        problem: Why this weight cannot be known even where its format is read (a companion is missing); else empty.
        block: Rows and columns that share a scale, where the scheme has such blocks.
        bits: Bits per code, where the format leaves them open.
        variant: What the headers do not show of the layout: `v2` of GPTQ.
        dequantise: Reads rows of the weight; None where the format is not read.
    """

    name: str
    format: str
    shape: tuple[int, ...] | None
    parts: Mapping[str, Handle]
    problem: str = ""
    block: tuple[int, int] | None = None
    bits: int | None = None
    variant: str = ""
    dequantise: Callable[[Codes, slice], Values] | None = None

    @property
    def nbytes(self) -> int:
        """Stored bytes of the codes and everything that belongs to them."""
        return sum(h.nbytes for h in self.parts.values())


def stored_as(form: str, weights: int) -> str:
    """A note on so many weights of one format."""
    stored = counted(weights, "weight is", "weights are")
    return (
        f"{stored} stored as {form}: read as what {'it stands' if weights == 1 else 'they stand'} for, with the "
        "format's step as noise"
    )


def count(handle: Handle) -> int:
    """How many numbers a tensor holds."""
    return prod(handle.shape)


def shown(handle: Handle) -> str:
    """A tensor's shape in words."""
    return times(handle.shape)
