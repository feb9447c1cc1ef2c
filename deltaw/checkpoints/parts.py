"""Parts of one checkpoint: joined where the layout says how, else refused as what they are, with the way out.

Numbered shards hold different tensors and are joined. Slices of the same tensors (tensor parallel, FSDP, ZeRO) can only
be put together by the tool of the trainer that cut them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from deltaw.errors import CheckpointError
from deltaw.types import Handle

NUMBERED = re.compile(r"-(\d{5,6})-of-(\d{5,6})\.\w+$")
MERGE = "merge them with the trainer's own tool, then give the merged checkpoint"
# Names of slices, and the tool that puts them together; the group is the number of the part.
DEEPSPEED = "DeepSpeed's conversion to Hugging Face's format"
SLICES = (
    (re.compile(r"^model_world_size_\d+_rank_(\d+)\.pt$"), "FSDP, verl", "python -m verl.model_merger merge"),
    (
        re.compile(r"^consolidated\.(\d+)\.pth$"),
        "tensor parallel, Meta",
        "transformers' convert_llama_weights_to_hf.py",
    ),
    (re.compile(r"^mp_rank_(\d+)_model_states\.pt$"), "tensor parallel, DeepSpeed", DEEPSPEED),
    (
        re.compile(r"zero_pp_rank_(\d+)_mp_rank_\d+_model_states\.pt$"),
        "ZeRO-3, DeepSpeed",
        "python zero_to_fp32.py DIR OUT",
    ),
    (re.compile(r"^layer_(\d+)-model_\d+-model_states\.pt$"), "pipeline parallel, DeepSpeed", DEEPSPEED),
)
ZERO = "python zero_to_fp32.py DIR OUT (it lies in the checkpoint's directory)"
DCP = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR model.pt"
# A name that says when a checkpoint was written, not which part of it a file is.
TIMES = re.compile(r"(^|[^a-z])(epoch|ep|step|iter|iteration|ckpt|checkpoint|snapshot)s?[^a-z]*\d", re.IGNORECASE)
FLAT = re.compile(r"(^|\.)_?flat_param(_\d+)?$|_fsdp_wrapped_module\.flat_param|_flat_param$")


def pattern_of(name: str) -> str:
    """A file's name with its numbers taken out: equal for the parts of one checkpoint."""
    return re.sub(r"\d+", "#", name)


def refuse_slice(path: Path) -> None:
    """Refuse a file that is one slice of several, by its name and those beside it.

    Raises:
        CheckpointError: It is.
    """
    for name, what, tool in SLICES:
        if name.search(path.name):
            others = sorted(p for p in path.parent.iterdir() if name.search(p.name))
            if len(others) > 1:
                raise CheckpointError(
                    f"{path.parent}: {len(others)} parts of one checkpoint ({what}: {_shown(others)}); join them with "
                    f"{tool}, then give the result"
                )


def refuse_unusable(tensors: Mapping[str, Handle], source: str, beside: Iterable[str] = ()) -> None:
    """Refuse checkpoints whose parameters are not in them: gathered by nobody, or flattened.

    Args:
        tensors: What was opened.
        source: Where, for messages.
        beside: Names of files with tensors that lie beside.

    Raises:
        CheckpointError: ZeRO-3's empty parameters, or FSDP's flat ones.
    """
    weights = [h for n, h in tensors.items() if n.endswith("weight")]
    empty = sum(h.shape == (0,) for h in weights)
    if empty and empty >= sum(len(h.shape) >= 2 for h in weights):
        others = sorted(beside)
        hint = f"; {others[0]} beside it may hold them" if others else ""
        raise CheckpointError(
            f"{source}: {empty} weights have shape [0]: saved under DeepSpeed ZeRO-3 without gathering them{hint}; "
            f"consolidate the training checkpoint with {ZERO}"
        )
    flat = [n for n in tensors if "flat_param" in n and FLAT.search(n)]
    if flat:
        raise CheckpointError(
            f"{source}: FSDP's flat parameters ({flat[0]}), without names and shapes; save a full state dict, "
            f"or for a .distcp directory: {DCP}"
        )


def join(parts: Sequence[tuple[Path, Mapping[str, Handle]]], source: Path) -> dict[str, Handle]:
    """The tensors of numbered parts together.

    Raises:
        CheckpointError: Two parts hold a tensor of the same name, so they are no shards.
    """
    out: dict[str, Handle] = {}
    several = all(TIMES.search(path.stem) for path, _ in parts)
    for _, tensors in parts:
        twice = next((n for n in tensors if n in out), None)
        if twice is not None and several:
            raise CheckpointError(
                f"{source}: {len(parts)} checkpoints of one training ({_shown([p for p, _ in parts])}); name the "
                "file of the one that is meant"
            )
        if twice is not None:
            raise CheckpointError(
                f"{source}: {len(parts)} parts of one checkpoint ({_shown([p for p, _ in parts])}) with the same names "
                f"({twice!r}), so each is a slice or a copy; {MERGE}"
            )
        out.update(tensors)
    return out


def complete(paths: Sequence[Path]) -> bool:
    """Whether files that count themselves (`-00001-of-00003`) are all there."""
    found = [NUMBERED.search(p.name) for p in paths]
    totals = {m.group(2) for m in found if m}
    return all(found) and len(totals) == 1 and len({m.group(1) for m in found if m}) == int(totals.pop())


def _shown(paths: Sequence[Path]) -> str:
    names = [p.name for p in paths[:3]]
    return ", ".join(names) + (", …" if len(paths) > 3 else "")


def inside(folder: Path, shard: object, index: Path) -> Path:
    """The path of a file that an index names; a name that leaves the directory could read any file of the machine.

    Raises:
        CheckpointError: It does, or is no name.
    """
    if not isinstance(shard, str) or not shard or "\0" in shard:
        raise CheckpointError(f"{index}: a shard's name is {str(shard)[:80]!r}; expected a file name")
    leaves = any(p.is_absolute() or ".." in p.parts for p in (PurePosixPath(shard), PureWindowsPath(shard)))
    if leaves:
        raise CheckpointError(f"{index}: shard {shard[:80]!r} lies outside {folder}, and is refused; correct the index")
    return folder / shard
