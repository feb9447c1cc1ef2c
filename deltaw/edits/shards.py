"""A checkpoint written again in its own layout: the same files, headers and order, with some tensors replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from deltaw.checkpoints import Checkpoint, StoredHandle
from deltaw.checkpoints.remote import RemoteFile
from deltaw.checkpoints.safetensors import read_header
from deltaw.errors import EditError
from deltaw.files import replacing
from deltaw.tensors.tensorfile import OutputTensor, raw, write_tensors
from deltaw.types import Handle

WRITTEN = ("safetensors", "pytorch", "memory", "diffusers")


def layout_of(ft: Checkpoint) -> dict[Path, dict[str, Handle]]:
    """The tensors of each file, by the checkpoint's names; one file without a path for a model in memory.

    Raises:
        EditError: It is of a format that is not written.
    """
    if not ft.format.startswith(WRITTEN):
        raise EditError(f"{ft.source}: {ft.format} is not written; save it as safetensors, and edit that")
    files: dict[Path, dict[str, Handle]] = {}
    for name, handle in ft.tensors.items():
        if not isinstance(handle, StoredHandle) and ft.format != "memory":
            raise EditError(
                f"{ft.source}: {name} lies in a file that is not written; save it as safetensors, and edit that"
            )
        path = handle.path if isinstance(handle, StoredHandle) else Path("model.safetensors")
        if isinstance(path, RemoteFile):
            raise EditError(f"{path}: a checkpoint is edited where it lies here; download it, and edit that")
        files.setdefault(path, {})[name] = handle
    return files


def write_shards(ft: Checkpoint, out: Path, changed: Mapping[str, Path]) -> None:
    """Write every file of a checkpoint.

    Args:
        ft: The checkpoint.
        out: The directory.
        changed: Where the replaced tensors are, by the checkpoint's names.

    Raises:
        OSError: A file cannot be written.
    """
    source = Path(ft.source)
    for path, tensors in layout_of(ft).items():
        inner = path.relative_to(source) if source.is_dir() and path.is_relative_to(source) else Path(path.name)
        target = out / inner
        target.parent.mkdir(parents=True, exist_ok=True)
        if ft.format == "memory":
            write_tensors(
                target, [OutputTensor(n, h.dtype, h.shape, _reader(n, h, changed)) for n, h in tensors.items()]
            )
        elif path.suffix == ".safetensors" or _is_safetensors(path):
            _copy(path, target, tensors, changed)
        else:
            _pickle(target, tensors, changed)


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _reader(name: str, handle: Handle, changed: Mapping[str, Path]) -> Callable[[], Tensor]:
    return lambda: _tensor(name, handle, changed)


def _tensor(name: str, handle: Handle, changed: Mapping[str, Path]) -> Tensor:
    """The replaced tensor, or the stored one."""
    from safetensors import safe_open

    if name not in changed:
        return handle.read()
    with safe_open(changed[name], "pt") as file:
        tensor: Tensor = file.get_tensor("tensor")
        return tensor


def _copy(path: Path, target: Path, tensors: Mapping[str, Handle], changed: Mapping[str, Path]) -> None:
    """A safetensors file with its own header: names, order and metadata are the same, and so are all other bytes."""
    own = {h.offset: name for name, h in tensors.items() if isinstance(h, StoredHandle)}
    stored = sorted((h for h in read_header(path)[0].values() if isinstance(h, StoredHandle)), key=lambda h: h.offset)
    with replacing(target) as temporary, path.open("rb") as file, temporary.open("wb") as out:
        length = int.from_bytes(file.read(8), "little")
        file.seek(0)
        out.write(file.read(8 + length))
        for handle in stored:
            if handle.nbytes:
                out.write(raw(_tensor(own.get(handle.offset, ""), handle, changed)))


def _pickle(target: Path, tensors: Mapping[str, Handle], changed: Mapping[str, Path]) -> None:
    """A PyTorch file of the same tensors; those that share memory share it again.

    Raises:
        OSError: It cannot be written.
    """
    import torch

    known: dict[object, torch.Tensor] = {}
    state = {n: known.setdefault((h.storage, n in changed and n), _tensor(n, h, changed)) for n, h in tensors.items()}
    with replacing(target) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as e:  # what torch calls a full disk
            raise OSError(str(e)) from e
