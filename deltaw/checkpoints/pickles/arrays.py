"""What NumPy's rebuilders make of their arguments, without NumPy: descriptions of arrays and dtypes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from deltaw.checkpoints.pickles.machine import Global, Inert, PickleError

NUMPY = re.compile(r"^[<>|=]?([fiubc])(\d+)$")
NUMPY_KINDS = {
    "f2": "float16", "f4": "float32", "f8": "float64", "i1": "int8", "i2": "int16", "i4": "int32", "i8": "int64",
    "u1": "uint8", "u2": "uint16", "u4": "uint32", "u8": "uint64", "b1": "bool", "c8": "complex64", "c16": "complex128",
}  # fmt: skip
MAX_DIMS = 64


@dataclass(eq=False)
class Array:
    """A NumPy array: filled by its state."""

    dtype: str = ""
    shape: tuple[int, ...] = ()
    data: bytes = b""
    fortran: bool = False
    swapped: bool = False


@dataclass(eq=False)
class NumpyDtype:
    """A NumPy dtype that a tensor can have (`float32`), or an empty text."""

    name: str
    swapped: bool = False


def apply(target: object, state: object) -> None:
    """Fill an array or a dtype with its state; attributes of anything else hold no tensors of the model.

    Raises:
        PickleError: It is no state of an array.
    """
    if isinstance(target, NumpyDtype):
        if isinstance(state, tuple) and len(state) > 1 and isinstance(state[1], str):
            target.swapped = state[1] == ">"
    elif isinstance(target, Array):
        if not isinstance(state, tuple) or len(state) not in {4, 5}:
            raise PickleError("a state that is none of an array")
        shape, dtype, fortran, data = state[-4:]
        target.shape, target.fortran = sizes(shape), bool(fortran)
        if isinstance(dtype, NumpyDtype):
            target.dtype, target.swapped = dtype.name, dtype.swapped
        target.data = octets(data) if isinstance(data, (bytes, bytearray, str)) else b""


def sizes(value: object) -> tuple[int, ...]:
    """A shape or strides.

    Raises:
        PickleError: It is none: no whole numbers, negative, or too many.
    """
    ok = isinstance(value, (tuple, list)) and len(value) <= MAX_DIMS
    if not ok or not all(isinstance(n, int) and 0 <= n < 2**62 for n in value):  # type: ignore[attr-defined]
        raise PickleError("a tensor's shape or strides are not sizes")
    return tuple(int(n) for n in value)  # type: ignore[attr-defined]


def new_array(*args: object) -> Array:
    """What `_reconstruct` makes: an array that its state will fill."""
    return Array()


def from_buffer(data: object, dtype: object, shape: object, order: object) -> object:
    """An array around its bytes; an `Inert` for one of no number type.

    Raises:
        PickleError: There are no bytes, or the shape is none.
    """
    if not isinstance(dtype, NumpyDtype):
        return Inert("numpy.array", (data, dtype))
    return Array(dtype.name, sizes(shape), octets(data), order == "F", dtype.swapped)


def numpy_dtype(code: object, *rest: object) -> object:
    """A dtype by its code (`f4`); without a name where no tensor can have it."""
    if isinstance(code, Global) and code.name.endswith(".bfloat16"):
        return NumpyDtype("bfloat16")
    found = NUMPY.match(code) if isinstance(code, str) else None
    name = NUMPY_KINDS.get(found[1] + found[2], "") if found else ""
    return NumpyDtype(name, isinstance(code, str) and code.startswith(">"))


def octets(value: object) -> bytes:
    """The bytes of an array.

    Raises:
        PickleError: There are none.
    """
    if isinstance(value, str):  # Python 2 wrote bytes as texts
        return value.encode("latin-1")
    if not isinstance(value, (bytes, bytearray)):
        raise PickleError("an array without bytes")
    return bytes(value)


def encoded(text: object, encoding: object = "utf-8") -> object:
    """Bytes as protocol 2 writes them: a text, encoded.

    Raises:
        PickleError: It is no text, or its encoding is none that a pickle writes.
    """
    if not isinstance(text, str) or encoding not in {"latin1", "latin-1", "utf-8", "ascii"}:
        raise PickleError("a text that is not encoded as a pickle's bytes are")
    return text.encode("latin-1" if encoding in {"latin1", "latin-1"} else str(encoding))
