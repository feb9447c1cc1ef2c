"""Checkpoints of torch.distributed.checkpoint, written by torch itself in pieces, and damaged ones."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from click.testing import CliRunner
from torch.distributed.checkpoint import metadata, planner

import deltaw
from deltaw.checkpoints import open_checkpoint
from deltaw.checkpoints.distcp import METADATA
from deltaw.cli import main
from deltaw.errors import CheckpointError
from tests.conftest import State, changed, save_single

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
Box = tuple[tuple[int, ...], tuple[int, ...]]  # offsets and sizes


class Cut(torch.Tensor):
    """A tensor that torch.distributed.checkpoint writes in pieces, as it does a DTensor's shards."""

    boxes: list[Box]

    def __create_write_items__(self, name: str, tensor: torch.Tensor) -> list[planner.WriteItem]:
        properties = metadata.TensorProperties(self.dtype)
        return [
            planner.WriteItem(
                metadata.MetadataIndex(name, torch.Size(offsets), i),
                planner.WriteItemType.SHARD,
                tensor_data=planner.TensorWriteData(
                    metadata.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)), properties, self.size()
                ),
            )
            for i, (offsets, sizes) in enumerate(self.boxes)
        ]

    def __get_tensor_shard__(self, index: metadata.MetadataIndex) -> torch.Tensor:
        offsets, sizes = next(box for box in self.boxes if torch.Size(box[0]) == index.offset)
        whole = self.as_subclass(torch.Tensor)
        return whole[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))].clone()


def cut(tensor: torch.Tensor, rows: int, cols: int = 1) -> torch.Tensor:
    """A tensor in rows × cols pieces, the last ones smaller where it does not divide."""
    out = tensor.as_subclass(Cut)
    m = tensor.shape[0]
    high = -(-m // rows)
    bands = [(i, min(high, m - i)) for i in range(0, m, high)]
    if tensor.ndim == 1:
        out.boxes = [((i,), (n,)) for i, n in bands]
    else:
        wide = -(-tensor.shape[1] // cols)
        spans = [(j, min(wide, tensor.shape[1] - j)) for j in range(0, tensor.shape[1], wide)]
        out.boxes = [((i, j), (n, k)) for i, n in bands for j, k in spans]
    return out


def save(state: dict[str, object], folder: Path) -> Path:
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def in_pieces(state: State) -> dict[str, object]:
    return {n: cut(t, 3, 1 if i % 2 else 2) for i, (n, t) in enumerate(state.items())}


def test_it_gives_the_rows_of_the_whole_files(pico: State, tmp_path: Path):
    ft = changed(pico)
    base_whole, ft_whole = save_single(pico, tmp_path / "a"), save_single(ft, tmp_path / "b")
    optimizer = {"state": {n: {"exp_avg": t} for n, t in pico.items()}, "param_groups": [{"lr": 0.1}]}
    base = save({"model": in_pieces(pico), "optimizer": optimizer, "step": 3}, tmp_path / "dcp")
    tuned = save(in_pieces(ft), tmp_path / "step-100")
    found, expected = deltaw.analyze(base, tuned), deltaw.analyze(base_whole, ft_whole)
    one, two = (a.to_pandas().drop(columns="seconds") for a in (found, expected))
    assert one.equals(two)
    assert found.base is not None
    assert found.base.format == "distcp"
    assert [Path(f.path).name for f in found.base.files] == [METADATA, "__0_0.distcp"]
    assert any("took the tensors from 'model'" in note for note in found.notes)
    done = CliRunner().invoke(main, ["inspect", str(base), str(tuned)])
    assert done.exit_code == 0, done.output


def test_every_cut_and_dtype_is_put_together_row_by_row(tmp_path: Path):
    g = torch.Generator().manual_seed(0)
    state = {
        "a": torch.randn(10, 7, generator=g),
        "b": torch.randn(9, 5, generator=g).bfloat16(),
        "c": torch.randn(4, 6, generator=g).to(torch.float8_e4m3fn),
        "d": torch.arange(11),
        "e": torch.tensor(2.5),
        "f": torch.randn(3, 4, 5, generator=g),
        "g": torch.zeros(0, 4),
    }
    pieces = {"a": cut(state["a"], 4, 3), "b": cut(state["b"], 2), "c": cut(state["c"], 1, 3), "d": cut(state["d"], 5)}
    opened = open_checkpoint(save({**state, **pieces}, tmp_path / "x"))
    for name, tensor in state.items():
        handle = opened.tensors[name]
        assert (handle.shape, handle.dtype) == (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        assert handle.nbytes == tensor.nbytes
        assert torch.equal(handle.read().view(torch.uint8), tensor.view(torch.uint8)) if tensor.ndim else True
        for start in range(len(tensor) if tensor.ndim else 0):
            for stop in range(start + 1, len(tensor) + 1):
                assert torch.equal(handle.read(slice(start, stop)).float(), tensor[start:stop].float())
    assert opened.tensors["e"].read() == 2.5


def test_a_part_of_the_state_can_be_chosen(pico: State, tmp_path: Path):
    folder = save({"model": dict(pico), "ema": changed(pico)}, tmp_path / "x")
    assert any("'ema' holds 21 tensors" in note for note in open_checkpoint(folder).notes)
    chosen = open_checkpoint(f"{folder}::ema").tensors["lm_head.weight"].read()
    assert torch.equal(chosen, changed(pico)["lm_head.weight"])


def test_the_model_is_found_beside_its_optimizer(pico: State, tmp_path: Path):
    save({"model": in_pieces(pico)}, tmp_path / "checkpoint" / "pytorch_model_fsdp_0")
    save({"optimizer": {"state": dict(pico)}}, tmp_path / "checkpoint" / "optimizer_0")
    assert len(open_checkpoint(tmp_path / "checkpoint").tensors) == len(pico)


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_incomplete_and_damaged_ones(pico: State, tmp_path: Path):
    folder = save({"model": in_pieces(pico)}, tmp_path / "x")
    data, file, about = (
        folder / "__0_0.distcp",
        (folder / "__0_0.distcp").read_bytes(),
        (folder / METADATA).read_bytes(),
    )
    data.write_bytes(file[:-400])
    cut_off = [h for h in open_checkpoint(folder).tensors.values() if h.nbytes == 0]
    assert len(cut_off) == 1
    data.write_bytes(file)
    (folder / METADATA).write_bytes(about[:-50])
    refused(folder, METADATA, "not what torch.distributed.checkpoint writes")
    (folder / METADATA).write_bytes(pickle.dumps({"a": 1}))
    refused(folder, "no Metadata where one is expected")
    (folder / METADATA).unlink()
    refused(folder, "without .metadata", "copy it, too")


def test_a_piece_of_another_shape_is_told_when_it_is_read(tmp_path: Path):
    folder = save({"a": torch.zeros(4, 4), "b": torch.ones(4, 4)}, tmp_path / "x")
    other = save({"a": torch.zeros(2, 8), "b": torch.ones(4, 4)}, tmp_path / "y")
    (folder / "__0_0.distcp").write_bytes((other / "__0_0.distcp").read_bytes())
    with pytest.raises(CheckpointError, match=r"its piece of 'a' is float32 2×8, where \.metadata says float32 4×4"):
        open_checkpoint(folder).tensors["a"].read()
    garbage = bytearray((folder / "__0_0.distcp").read_bytes())
    garbage[:] = b"x" * len(garbage)
    (folder / "__0_0.distcp").write_bytes(garbage)
    with pytest.raises(CheckpointError, match="not a complete PyTorch file"):
        open_checkpoint(folder).tensors["a"].read()


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/deltaw-was-here",)


def told(**fields: object) -> metadata.Metadata:
    """Metadata of one 4×4 tensor in two pieces, with some of its fields otherwise."""
    size = torch.Size
    chunks = [metadata.ChunkStorageMetadata(size((i, 0)), size((2, 4))) for i in (0, 2)]
    tensor = metadata.TensorStorageMetadata(metadata.TensorProperties(torch.float32), size((4, 4)), chunks)
    info = dcp.filesystem._StorageInfo
    places = {
        metadata.MetadataIndex("w", size((i, 0))): info(str(fields.get("path", "__0_0.distcp")), 0, 10) for i in (0, 2)
    }
    if "chunks" in fields:
        tensor.chunks = fields["chunks"]  # type: ignore[assignment]
    return metadata.Metadata({"w": tensor}, fields.get("planner"), places)


def test_hostile_metadata(tmp_path: Path):
    (tmp_path / "__0_0.distcp").write_bytes(b"x" * 100)

    def write(value: object) -> None:
        (tmp_path / METADATA).write_bytes(pickle.dumps(value))

    write(Attack())
    refused(tmp_path, "system", "could run code", "nothing of it was run")
    write(told(path="../../etc/passwd"))
    refused(tmp_path, "lies outside")
    write(told(planner={"w": ["deep"] * 1000}))
    open_checkpoint(tmp_path)
    size = torch.Size
    box = metadata.ChunkStorageMetadata
    for chunks, said in (
        ([box(size((0, 0)), size((2, 4)))], "do not make the whole"),
        ([box(size((0, 0)), size((2, 4))), box(size((2, 0)), size((4, 2)))], "do not make the whole"),
        ([box(size((0, 0)), size((3, 4))), box(size((2, 0)), size((1, 4)))], "do not make the whole"),
        ([box(size((1, 0)), size((2, 4)))], "does not say where"),
    ):
        write(told(chunks=chunks))
        with pytest.raises(CheckpointError, match=said):
            open_checkpoint(tmp_path).tensors["w"].read()
    for chunks in ([box(size((0, 0)), size((2, 4)))] * 5000, "text", [OrderedDict()]):
        write(told(chunks=chunks))
        refused(tmp_path, METADATA)
    assert not Path("/tmp/deltaw-was-here").exists()
