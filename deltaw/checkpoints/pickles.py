"""PyTorch pickles (`.bin`, `.pt`, `.pth`, `.ckpt`), by `torch.load(weights_only=True)` alone.

Files of torch ≥ 1.6 are zip archives of raw storages: loading under `FakeTensorMode` reads the pickle but not
the storages, and says where each lies. Older ones must be read whole.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltaw.checkpoints.memory import tensor_handles
from deltaw.checkpoints.stored import StoredHandle
from deltaw.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from deltaw.types import Handle

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
BARE = "tensor"  # the name of the tensor in a file that holds nothing else


def read_pickle(path: Path) -> tuple[dict[str, Handle], tuple[str, ...]]:
    """The tensors of one file by name, and what was unwrapped or ignored.

    Raises:
        CheckpointError: The file is damaged, needs code to be loaded, or holds no tensors.
    """
    zipped = zipfile.is_zipfile(path)
    content = _load(path, headers_only=zipped)
    tensors, notes = unwrap(content, path)
    if not zipped:
        return dict(tensor_handles(tensors)), notes
    return {name: _stored(name, tensor, path) for name, tensor in tensors.items()}, notes


def _load(path: Path, *, headers_only: bool) -> Any:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with warnings.catch_warnings():
            # torch's advice on old and foreign pickles; what cannot be read is an error.
            warnings.simplefilter("ignore")
            with FakeTensorMode() if headers_only else nullcontext():
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        # torch's message runs over many lines of advice, one of which is to switch the protection off.
        needs = next((line for line in str(e).splitlines() if "GLOBAL" in line or "Unsupported" in line), "")
        if not needs:
            raise CheckpointError(f"{path}: not a PyTorch file; expected a pickle of tensors, or safetensors") from e
        raise CheckpointError(
            f"{path}: this pickle needs more than tensors, which could run code, and is refused "
            f"({needs.strip().split('. ')[0]}); convert it to safetensors where you trust it"
        ) from e
    except Exception as e:
        first = (str(e).splitlines() or [type(e).__name__])[0]
        raise CheckpointError(f"{path}: not a complete PyTorch file ({first}); copy or download it again") from e


def _stored(name: str, tensor: torch.Tensor, path: Path) -> StoredHandle:
    storage = tensor.untyped_storage()
    start: int | None = getattr(storage, "_checkpoint_offset", None)
    assert start is not None, "torch sets _checkpoint_offset when it loads fake tensors from a zip file"
    offset = start + tensor.storage_offset() * tensor.element_size()
    strides = None if tensor.is_contiguous() else tuple(tensor.stride())
    dtype = str(tensor.dtype).removeprefix("torch.")
    return StoredHandle(name, tuple(tensor.shape), dtype, path, int(offset), tensor.element_size(), strides)


def unwrap(content: Any, path: Path) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The state dict in whatever was saved around it, and notes on what was removed.

    Raises:
        CheckpointError: There are no tensors.
    """
    import torch

    notes: list[str] = []
    if isinstance(content, torch.Tensor):
        return {BARE: content}, ()
    while isinstance(content, Mapping) and not any(isinstance(v, torch.Tensor) for v in content.values()):
        inner = next((k for k in WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        notes.append(f"{path.name}: took the tensors from {inner!r}")
        content = content[inner]
    tensors: dict[str, torch.Tensor] = {}
    if isinstance(content, Mapping):
        tensors = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}
        others = [str(k) for k, v in content.items() if not isinstance(v, torch.Tensor)]
        if tensors and others:
            shown = ", ".join(others[:5]) + (", …" if len(others) > 5 else "")
            notes.append(f"{path.name}: ignored {len(others)} entries that are no tensors ({shown})")
    if not tensors:
        keys = ", ".join(str(k) for k in list(content)[:5]) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{path}: no tensors found (it holds: {keys or 'nothing'}); expected a state dict")
    return tensors, tuple(notes)
