"""What torch's and NumPy's rebuilders make of their arguments, without torch or NumPy: descriptions of tensors.

The functions are those that `torch.save` and `pickle` write for tensors, storages, arrays and dtypes. Whatever else a
pickle calls becomes an `Inert`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from deltaw.checkpoints.pickles.arrays import (
    Array,
    apply,
    encoded,
    from_buffer,
    new_array,
    numpy_dtype,
    octets,
    sizes,
)
from deltaw.checkpoints.pickles.machine import Global, Inert, PickleError, key
from deltaw.types import Reason

# torch's name of a storage's dtype → (the dtype, bytes per element)
STORAGES = {
    "Double": ("float64", 8), "Float": ("float32", 4), "Half": ("float16", 2), "BFloat16": ("bfloat16", 2),
    "Long": ("int64", 8), "Int": ("int32", 4), "Short": ("int16", 2), "Char": ("int8", 1), "Byte": ("uint8", 1),
    "Bool": ("bool", 1), "ComplexFloat": ("complex64", 8), "ComplexDouble": ("complex128", 16), "QInt8": ("qint8", 1),
    "QUInt8": ("quint8", 1), "QInt32": ("qint32", 4), "QUInt4x2": ("quint4x2", 1), "QUInt2x4": ("quint2x4", 1),
    "Untyped": ("uint8", 1), "": ("uint8", 1),
}  # fmt: skip
ITEMSIZE = dict(STORAGES.values()) | {
    "uint16": 2, "uint32": 4, "uint64": 8, "complex32": 4, "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1, "float4_e2m1fn_x2": 1,
}  # fmt: skip
STORAGE = re.compile(r"^torch\.(?:cuda\.|storage\.)?(\w*?)(?:Typed)?Storage$")


@dataclass(frozen=True)
class Storage:
    """A run of bytes that tensors look at: a key in the file, or the bytes themselves.

    `start` and `numel` are in elements of `dtype`.
    """

    dtype: str
    key: str
    numel: int
    start: int = 0
    nested: Nested | None = None


@dataclass(frozen=True, eq=False)
class Nested:
    """A file of torch's within the pickle, as bytes: its storages by key."""

    data: dict[str, bytes]


@dataclass(frozen=True)
class RawTensor:
    """A strided view of a storage; offset and strides in elements of `dtype`."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    negated: bool = False


@dataclass(frozen=True)
class Refused:
    """A tensor that is there and is not read, and why."""

    shape: tuple[int, ...]
    dtype: str
    because: Reason
    subject: str
    detail: str


Tensor = RawTensor | Refused | Array


class Rebuilder:
    """Makes what a pickle calls for, and counts what that copies: no more than the file holds, whatever it repeats.

    Args:
        size: Bytes of the file.
        nested: Reads a file of torch's that lies within the pickle, from its bytes and its depth.
        depth: How many files of torch's this one lies in.
    """

    def __init__(self, size: int, nested: Callable[[bytes, int], object], depth: int = 0) -> None:
        self.left = 2 * size + 2**20
        self.nested = nested
        self.depth = depth

    def call(self, name: str, args: object) -> object:
        """What a call of a global makes; an `Inert` for whatever is not known here.

        Raises:
            PickleError: The arguments of a rebuilder are not what it takes.
        """
        if name == "persistent":
            return _persistent(args)
        name = name.replace("numpy.core.", "numpy._core.").replace("__builtin__.", "builtins.")
        if not isinstance(args, tuple):
            return Inert(name, args)
        try:
            if name == "torch.storage._load_from_bytes":
                return self._nested_file(args[0])
            if name.startswith("torch._tensor._rebuild_from_type"):
                return self._from_type(*args[:3])
            maker = MAKERS.get(name)
            if maker is None:
                return Inert(name, args)
            self._pay(sum(len(a) for a in args if isinstance(a, (str, bytes, bytearray, list, tuple, dict))))
            return maker(*args)
        except PickleError:
            raise
        except (TypeError, ValueError, IndexError, OverflowError) as e:
            raise PickleError(f"arguments that {name} does not take") from e

    def build(self, target: object, state: object) -> None:
        """Apply a state to something that `call` made.

        Raises:
            PickleError: It is no state of an array or a dtype.
        """
        if isinstance(state, tuple) and isinstance(state[-1:], tuple):
            self._pay(sum(len(a) for a in state if isinstance(a, str)))
        apply(target, state)

    def _pay(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise PickleError("it unfolds to far more than it is")

    def _nested_file(self, data: object) -> object:
        # `pickle.dump` of a tensor puts a whole file of torch's into the pickle.
        self._pay(len(data) if isinstance(data, (bytes, bytearray, str)) else 0)
        if self.depth > 2:
            raise PickleError("files within files within files")
        return self.nested(octets(data), self.depth + 1)

    def _from_type(self, function: object, cls: object, args: object) -> object:
        made = self.call(function.name, args) if isinstance(function, Global) else Inert("tensor", args)
        name = cls.name if isinstance(cls, Global) else ""
        short = name.rpartition(".")[2]
        # What these add to the stored numbers is not known; other subclasses are views of plain tensors.
        special = name.startswith(("torchao.", "torch.distributed.")) or short in {"DTensor", "ShardedTensor"}
        return _subclass(cls, made.shape, made.dtype) if isinstance(made, RawTensor) and special else made


def _persistent(pid: object) -> object:
    # ('storage', type, key, location, number of elements[, (key, offset, number) of a view])
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
        return Inert("persistent", pid)
    kind, stored, numel = pid[1], pid[2], pid[4]
    dtype = storage_dtype(kind.name) if isinstance(kind, Global) else None
    if dtype is None or not isinstance(numel, int) or not 0 <= numel < 2**62:
        raise PickleError("a storage of no known type or size")
    view = pid[5] if len(pid) > 5 else None
    if view is None:
        return Storage(dtype, str(stored), numel)
    _, start, length = view
    if not (isinstance(start, int) and isinstance(length, int) and 0 <= start <= numel - length):
        raise PickleError("a view that leaves its storage")
    return Storage(dtype, str(stored), length, start)


def storage_dtype(name: str) -> str | None:
    """The dtype of a storage class by its name."""
    found = STORAGE.match(name)
    return STORAGES[found[1]][0] if found and found[1] in STORAGES else None


def _tensor(storage: object, offset: object, shape: object, strides: object, *rest: object) -> object:
    # Behind the strides: requires_grad, hooks and, in newer files, what is lazy about the view.
    lazy = rest[2] if len(rest) > 2 else None
    return _strided(storage, offset, shape, strides, None, lazy)


def _tensor_of_dtype(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    grad: object,
    hooks: object,
    dtype: object,
    lazy: object = None,
) -> object:
    return _strided(storage, offset, shape, strides, dtype, lazy)


def _strided(storage: object, offset: object, shape: object, strides: object, dtype: object, lazy: object) -> object:
    if not isinstance(storage, Storage) or not isinstance(offset, int) or not 0 <= offset < 2**62:
        raise PickleError("a tensor without a storage")
    shape, strides = sizes(shape), sizes(strides)
    if len(shape) != len(strides):
        raise PickleError("a tensor with more dimensions than strides")
    name = dtype_name(dtype) if dtype is not None else storage.dtype
    lazy = lazy if isinstance(lazy, dict) else {}
    if lazy.get("conj"):
        return Refused(
            shape, name, Reason.UNSUPPORTED, "conjugated view", "resolve it before saving (tensor.resolve_conj())"
        )
    return RawTensor(storage, name, offset, shape, strides, bool(lazy.get("neg")))


def dtype_name(value: object) -> str:
    """`float32` of a global `torch.float32`.

    Raises:
        PickleError: It is no dtype of torch's.
    """
    if not isinstance(value, Global) or not value.name.startswith("torch."):
        raise PickleError("a dtype that is none of torch's")
    return value.name.removeprefix("torch.")


def _parameter(data: object = None, *rest: object) -> object:
    return data


def _sparse(layout: object, data: object) -> object:
    name = layout.args[0] if isinstance(layout, Inert) and isinstance(layout.args, tuple) and layout.args else layout
    kind = str(name).removeprefix("torch.") if isinstance(name, str) else "sparse"
    if isinstance(layout, Global):
        kind = layout.name.removeprefix("torch.")
    shape: tuple[int, ...] = ()
    dtype = "float32"
    for part in data if isinstance(data, tuple) else ():
        if isinstance(part, (tuple, list)):
            shape = sizes(part)
        elif isinstance(part, RawTensor):
            dtype = part.dtype if part.dtype.startswith(("float", "bfloat", "complex")) else dtype
    return Refused(shape, dtype, Reason.UNSUPPORTED, kind, "a sparse layout; save it dense (tensor.to_dense())")


def _meta(dtype: object, shape: object, *rest: object) -> object:
    detail = "it is on the meta device and has no data; load the weights before saving"
    return Refused(sizes(shape), dtype_name(dtype), Reason.UNSUPPORTED, "meta", detail)


def _quantised(storage: object, offset: object, shape: object, *rest: object) -> object:
    dtype = storage.dtype if isinstance(storage, Storage) else "qint8"
    return Refused(sizes(shape), dtype, Reason.QUANTISED, dtype, "codes of torch.quantize; save tensor.dequantize()")


def _nested(buffer: object, *rest: object) -> object:
    dtype = buffer.dtype if isinstance(buffer, RawTensor) else "float32"
    return Refused(
        (), dtype, Reason.UNSUPPORTED, "nested tensor", "tensors of several shapes in one; save them one by one"
    )


def _wrapper(cls: object, dtype: object, shape: object, *rest: object) -> object:
    return _subclass(cls, sizes(shape), dtype_name(dtype))


def _subclass(cls: object, shape: tuple[int, ...], dtype: str) -> Refused:
    name = cls.name if isinstance(cls, Global) else "a tensor subclass"
    short = name.rpartition(".")[2]
    remedy = "a shard of a tensor; consolidate the checkpoint" if short == "DTensor" else "save its plain tensor"
    return Refused(shape, dtype, Reason.UNSUPPORTED, short, f"{name} is not built: {remedy}")


def _device_array(data: object, dtype: object, *rest: object) -> object:
    return data


def _mapping(*args: object) -> dict[object, object]:
    out: dict[object, object] = {}
    first = args[-1] if args else None
    if isinstance(first, dict):
        out.update(first)
    elif isinstance(first, (list, tuple)):
        for pair in first:
            k, v = pair
            out[key(k)] = v
    return out


def _list(*args: object) -> list[object]:
    return list(args[0]) if args and isinstance(args[0], (list, tuple)) else []


def _same(value: object, *rest: object) -> object:
    return value


MAKERS: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda *args: {},
    "collections.Counter": _mapping,
    "builtins.dict": _mapping,
    "builtins.set": _list,
    "builtins.frozenset": _list,
    "builtins.list": _list,
    "builtins.tuple": lambda *args: tuple(_list(*args)),
    "builtins.bytearray": lambda data=b"", *rest: encoded(data, *rest) if isinstance(data, str) else octets(data),
    "builtins.bytes": lambda data=b"", *rest: octets(data) if isinstance(data, (bytes, bytearray)) else b"",
    "_codecs.encode": encoded,
    "torch.Size": lambda value=(): sizes(value),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_sparse_csr_tensor": _sparse,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_qtensor": _quantised,
    "torch._utils._rebuild_nested_tensor": _nested,
    "torch._utils._rebuild_wrapper_subclass": _wrapper,
    "torch._utils._rebuild_device_tensor_from_numpy": _device_array,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _device_array,
    "torch.jit._pickle.restore_type_tag": _same,
    "torch.jit._pickle.build_intlist": _same,
    "torch.jit._pickle.build_doublelist": _same,
    "torch.jit._pickle.build_boollist": _same,
    "torch.jit._pickle.build_tensorlist": _same,
    "numpy._core.multiarray._reconstruct": new_array,
    "numpy._core.numeric._frombuffer": from_buffer,
    "numpy.dtype": numpy_dtype,
}
