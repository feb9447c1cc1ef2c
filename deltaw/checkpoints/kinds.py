"""What a file is, told by its first bytes: suffixes are hints that are wrong or absent too often."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deltaw.errors import CheckpointError

Kind = Literal["safetensors", "pytorch", "gguf"]
HEAD = 512
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
DISTCP_SUFFIX = ".distcp"
CONVERT = "load it with its own library and save it as safetensors"


@dataclass(frozen=True)
class Foreign:
    """A kind of file that is not read, the way out, and whether it may hold a model's weights."""

    what: str
    remedy: str
    fits: Callable[[bytes], bool]
    weights: bool = True


def _starts(*magics: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magics)


def _page(head: bytes) -> bool:
    return head.lstrip()[:15].lower().startswith((b"<!doctype", b"<html"))


def _onnx(head: bytes) -> bool:
    # A protobuf whose first field is a small version number, then the producer's name or the graph.
    return len(head) > 3 and head[0] == 8 and 0 < head[1] < 32 and head[2] in b"\x12\x1a\x22\x3a"


def _msgpack(head: bytes) -> bool:
    # A mapping of up to 15 names, or of more.
    return bool(head) and (0x81 <= head[0] <= 0x8F or head[0] in {0xDE, 0xDF})


GGML = _starts(b"lmgg", b"fmgg", b"tjgg", b"algg", b"ggml", b"ggjt")
COMPRESSED = _starts(b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf")
ORIGINAL = "give the checkpoint that it was made from"
FOREIGN = (
    Foreign("a Git LFS pointer and not the file itself", "fetch it: git lfs pull", _starts(b"version https://git-lfs")),
    Foreign("a GGML file of before GGUF", ORIGINAL, GGML),
    Foreign("a NumPy array (.npy)", "save it in a safetensors file under its tensor's name", _starts(b"\x93NUMPY")),
    Foreign("an HDF5 file (Keras, TensorFlow)", CONVERT, _starts(b"\x89HDF\r\n\x1a\n")),
    Foreign("a TensorFlow Lite model", CONVERT, lambda head: head[4:8] == b"TFL3"),
    Foreign("an ONNX model", ORIGINAL, _onnx),
    Foreign("a Parquet file", "give a checkpoint", _starts(b"PAR1"), weights=False),
    Foreign("a tar archive (NeMo, torch before 0.1.10)", "unpack it", lambda head: head[257:262] == b"ustar"),
    Foreign("a compressed file", "unpack it", COMPRESSED),
    Foreign("a web page and not a checkpoint", "download the file itself, and log in if it asks for it", _page),
    Foreign("msgpack (Flax)", "convert it (from_flax=True), then save_pretrained", _msgpack),
)
# What a suffix says where the bytes say nothing.
BY_SUFFIX = {
    ".msgpack": "msgpack",
    ".h5": "an HDF5",
    ".onnx": "an ONNX",
    ".tflite": "a TensorFlow Lite",
    ".npy": "a NumPy",
}


def regular(path: Path) -> int:
    """The size of a file.

    Raises:
        CheckpointError: It is a directory, a pipe or a device, which may never end.
        OSError: It cannot be looked at.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise CheckpointError(f"{path}: not a regular file (a pipe, a device or a directory); give a file")
    return about.st_size


def read_head(path: Path) -> bytes:
    """The first bytes of a regular file.

    Raises:
        CheckpointError: It is no regular file.
        OSError: It cannot be read.
    """
    regular(path)
    with path.open("rb") as file:
        return file.read(HEAD)


def kind_of(path: Path) -> Kind:
    """Which reader a file needs.

    Raises:
        CheckpointError: It is something else, which is named with the way out.
        OSError: It cannot be read.
    """
    head = read_head(path)
    known = _known(head)
    if known is not None:
        return known
    foreign = _foreign(head, path)
    if foreign is not None:
        raise CheckpointError(f"{path}: {foreign.what}; {foreign.remedy}")
    suffix = path.suffix.lower()
    if suffix in {".safetensors", ".gguf"}:
        return "gguf" if suffix == ".gguf" else "safetensors"  # its reader says what is wrong with it
    if suffix in PICKLE_SUFFIXES and head:
        raise CheckpointError(
            f"{path}: not a PyTorch file (it begins with {head[:8]!r}); expected a pickle of tensors, or safetensors"
        )
    found = f"it begins with {head[:16]!r}" if head else "it is empty"
    raise CheckpointError(
        f"{path}: files of this kind are not read ({found}); expected a .safetensors or .gguf file, one of torch.save "
        f"({', '.join(PICKLE_SUFFIXES)}), or a directory"
    )


def holds_tensors(path: Path) -> Kind | Foreign | None:
    """What a file that lies somewhere in a checkpoint's directory is, if it may hold weights; None for all else."""
    try:
        head = read_head(path)
    except (CheckpointError, OSError):
        return None
    foreign = _foreign(head, path)
    return _known(head) or (foreign if foreign is not None and foreign.weights else None)


def _known(head: bytes) -> Kind | None:
    if head[:4] == b"GGUF":
        return "gguf"
    # A length of eight bytes, little-endian, then JSON; it may begin as a pickle does, so it is asked first.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**40:
        return "safetensors"
    pickled = head[:1] == b"\x80" and len(head) > 1 and 2 <= head[1] <= 5
    return "pytorch" if pickled or head[:4] == b"PK\x03\x04" else None


def _foreign(head: bytes, path: Path) -> Foreign | None:
    found = next((f for f in FOREIGN if f.fits(head)), None)
    if found is None and path.suffix.lower() in BY_SUFFIX:  # damaged, or of a version that begins otherwise
        return next(f for f in FOREIGN if f.what.startswith(BY_SUFFIX[path.suffix.lower()]))
    if found is not None and found.what.startswith("msgpack") and path.suffix not in {".msgpack", ".flax"}:
        return None  # its first byte alone says too little
    return found
