"""LoRA that began inside W0: PiSSA, OLoRA, CorDA, LoRA-GA take B0·A0 out of the base, so B·A is no update of it.

Meng et al. 2024 (PiSSA), Büyükakyüz 2024 (OLoRA), Yang et al. 2024 (CorDA), Wang et al. 2024 (LoRA-GA). The trained
model is W0 − s·B0·A0 + s·B·A, so ΔW = s(B·A − B0·A0), of rank 2r at most, if the initial adapter was kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from deltaw.adapters.keys import LoraModule, sort_tensors
from deltaw.checkpoints import Checkpoint
from deltaw.documents import Document, read_object
from deltaw.errors import AdapterError, CheckpointError
from deltaw.results.sources import FileStamp

CONFIG = "adapter_config.json"


def find_initial(folder: Path, init: str) -> Path | None:
    """The initial adapter kept in or beside an adapter's directory, by the names in use (`pissa_init`, …).

    Raises:
        AdapterError: There is more than one.
    """
    method = init.split("_niter_")[0]
    names = {f"{method}_init", f"{method.replace('_', '')}_init", "init", "initial", "initial_adapter", "init_adapter"}
    places = [p for parent in (folder, folder.parent) for p in sorted(parent.iterdir()) if p.name.lower() in names]
    found = [p for p in places if p != folder and (p / CONFIG).is_file()]
    if len(found) > 1:
        several = " and ".join(str(p) for p in found)
        raise AdapterError(f"{folder}: two initial adapters, {several}; keep the one that training began with")
    return found[0] if found else None


def open_initial(
    path: Path, open_tensors: Callable[[Path], Checkpoint]
) -> tuple[tuple[Mapping[str, LoraModule], Document], tuple[FileStamp, ...]]:
    """The modules of an initial adapter by path with its config, and its files as they were.

    Raises:
        AdapterError: It is not LoRA, or cannot be read.
    """
    try:
        config = read_object(path / CONFIG, error=AdapterError)
        opened = open_tensors(path)
    except CheckpointError as e:
        raise AdapterError(f"{path}, the initial adapter, cannot be read: {e}") from e
    if config.text("peft_type") != "LORA":
        raise AdapterError(f"{path}: the initial adapter is {config.text('peft_type')!r}; expected LORA")
    modules = {m.path: m for m in sort_tensors(opened.tensors, str(path)).modules}
    return (modules, config), (FileStamp.of(path / CONFIG), *opened.files)
