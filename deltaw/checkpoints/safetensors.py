"""safetensors files (https://github.com/huggingface/safetensors): a JSON header, then raw row-major bytes."""

from __future__ import annotations

import json
from pathlib import Path

from deltaw.checkpoints.stored import StoredHandle
from deltaw.errors import CheckpointError

SUFFIX = ".safetensors"

# dtype in the header → (torch's name, bytes per element)
DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "U16": ("uint16", 2),
    "U32": ("uint32", 4),
    "U64": ("uint64", 8),
    "BOOL": ("bool", 1),
    "C64": ("complex64", 8),
}


def read_header(path: Path) -> dict[str, StoredHandle]:
    """The tensors of one file, by name in stored order.

    The library checks the header first (offsets that overlap, leave holes or leave the file); only then are the
    offsets taken from it.

    Raises:
        CheckpointError: The file is not whole safetensors, or has a dtype that is not known here.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as e:
        size = path.stat().st_size if path.exists() else 0
        raise CheckpointError(
            f"{path}: not a complete safetensors file ({str(e).rstrip('.')}; {size:,} bytes); copy or download it again"
        ) from e
    header.pop("__metadata__", None)
    out = {}
    for name, about in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
        if about["dtype"] not in DTYPES:
            raise CheckpointError(f"{path}: {name!r} has dtype {about['dtype']}, which is not known here")
        dtype, itemsize = DTYPES[about["dtype"]]
        offset = 8 + length + about["data_offsets"][0]
        out[name] = StoredHandle(name, tuple(about["shape"]), dtype, path, offset, itemsize)
    return out
