"""Damaged and hostile checkpoints: one clear line each, and nothing is executed."""

import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaw.checkpoints import open_checkpoint
from deltaw.errors import CheckpointError, DeltaWError
from tests.conftest import State, save_bin, save_sharded, save_single


def refused(path: Path, *words: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def test_missing_path(tmp_path: Path):
    refused(tmp_path / "nope", "nope", "no such file")


def test_empty_directory(tmp_path: Path):
    refused(tmp_path, str(tmp_path), "expected model.safetensors")


def test_a_file_of_another_kind(tmp_path: Path):
    (tmp_path / "x.txt").write_text("hello")
    refused(tmp_path / "x.txt", "x.txt", ".safetensors")


def test_a_foreign_pickle_is_one_line(tmp_path: Path):
    """torch warns over two lines before it refuses; our tests turn a warning into an error."""
    for protocol in (2, 4):
        file = tmp_path / f"x{protocol}.bin"
        file.write_bytes(pickle.dumps({"w": [1.0, 2.0]}, protocol=protocol))
        refused(file, file.name)


@pytest.mark.parametrize("keep", [0, 4, 8, 200, -1])
def test_truncated_safetensors(tmp_path: Path, pico: State, keep: int):
    file = save_single(pico, tmp_path / "x") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(file, "model.safetensors", "not a complete safetensors file")


def test_truncated_after_opening(tmp_path: Path, pico: State):
    file = save_single(pico, tmp_path / "x") / "model.safetensors"
    tensors = open_checkpoint(file).tensors
    os.truncate(file, file.stat().st_size // 2)
    ends = [name for name, h in tensors.items() if h.offset + h.nbytes > file.stat().st_size]
    with pytest.raises(CheckpointError, match="truncated"):
        tensors[ends[0]].read()
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        tensors[ends[0]].read()


def lying(header: dict[str, object], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "about",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 4000]},
        {"dtype": "F32", "shape": [400], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]},
        {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]},
        {"shape": [4]},
        7,
    ],
)
def test_lying_headers(tmp_path: Path, about: object):
    (tmp_path / "x.safetensors").write_bytes(lying({"w": about}, b"\0" * 16))
    refused(tmp_path / "x.safetensors", "x.safetensors")


def test_a_header_that_is_no_json_object(tmp_path: Path):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 2) + b"[]")
    refused(tmp_path / "x.safetensors", "x.safetensors")


@given(st.binary(max_size=200))
@settings(max_examples=60)
def test_any_bytes_are_an_error_of_ours(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("x.safetensors", "x.bin"):
        (folder / name).write_bytes(data)
        with pytest.raises(DeltaWError):
            open_checkpoint(folder / name)


class Code:
    def __reduce__(self):
        return (os.system, ("touch /tmp/deltaw-was-here",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code(tmp_path: Path, zipped: bool):
    marker = Path("/tmp/deltaw-was-here")
    torch.save({"w": torch.ones(2), "x": Code()}, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    refused(tmp_path / "x.bin", "could run code", "safetensors")
    (tmp_path / "y.bin").write_bytes(pickle.dumps(Code()))
    refused(tmp_path / "y.bin", "y.bin")
    assert not marker.exists()


def test_a_truncated_pickle(tmp_path: Path, pico: State):
    file = save_bin(pico, tmp_path / "x") / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-100])
    refused(file, "not a complete PyTorch file")


def test_a_pickle_without_tensors(tmp_path: Path):
    torch.save({"lr": 0.1, "steps": [1, 2]}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "no tensors", "lr")


def test_a_missing_shard(tmp_path: Path, pico: State):
    folder = save_sharded(pico, tmp_path / "x")
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(folder, "model-00002-of-00003.safetensors", "not in")


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/passwd", "a/../../x.safetensors", "..\\x.safetensors", "", 7]
)
def test_a_shard_outside(tmp_path: Path, pico: State, shard: object):
    save_single(pico, tmp_path)
    folder = tmp_path / "inner"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    refused(folder, "model.safetensors.index.json")


def test_an_index_that_is_wrong_about_a_shard(tmp_path: Path, pico: State):
    folder = save_sharded(pico, tmp_path / "x")
    index = folder / "model.safetensors.index.json"
    about = json.loads(index.read_text())
    about["weight_map"]["not.there"] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps(about))
    refused(folder, "not.there")
    index.write_text("{")
    refused(folder, "not valid JSON")
    index.write_text("{}")
    refused(folder, "weight_map")


def test_two_checkpoints_in_one_directory(tmp_path: Path, pico: State):
    save_single(pico, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    save_single(pico, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "b.safetensors")
    refused(tmp_path, "a.safetensors", "b.safetensors")


def test_a_hub_id_without_network():
    refused(Path("nobody/nothing"), "no such file")  # a Path is a path
    with pytest.raises(CheckpointError, match="Hub id") as caught:
        open_checkpoint("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_meta_tensors_have_no_data():
    with torch.device("meta"):
        module = torch.nn.Linear(3, 3)
    with pytest.raises(CheckpointError, match="meta"):
        open_checkpoint(module).tensors["weight"].read()
