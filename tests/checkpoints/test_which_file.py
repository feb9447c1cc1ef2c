"""What a file is, which of several is the checkpoint, and what lies beside it: as trainers and the Hub leave them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deltaw.checkpoints import UnreadHandle, hub, open_checkpoint
from deltaw.checkpoints.kinds import kind_of
from deltaw.errors import CheckpointError
from tests.conftest import State, save_bin, save_single


def refused(path: Path, *words: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def opened(path: Path, state: State) -> tuple[str, ...]:
    found = open_checkpoint(path)
    assert set(found.tensors) == set(state)
    for name, tensor in state.items():
        assert torch.equal(found.tensors[name].read(), tensor)
    return found.notes


@pytest.mark.parametrize("name", ["model.pth.tar", "weights.v2", "deadbeef", "M.SAFETENSORS", "model.safetensors.pt"])
def test_a_suffix_is_a_hint(tmp_path: Path, pico: State, name: str):
    for save in (save_single, save_bin):
        folder = save(pico, tmp_path / save.__name__)
        next(folder.iterdir()).rename(folder / name)
        opened(folder / name, pico)
        opened(folder, pico)


FOREIGN = {
    "lfs.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n", "git lfs pull"),
    "lfs.bin": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n", "Git LFS pointer"),
    "x.gguf": (b"GGUF\x03\0\0\0" + bytes(3), "GGUF"),
    "x.npy": (b"\x93NUMPY\x01\0" + bytes(80), "NumPy"),
    "x.h5": (b"\x89HDF\r\n\x1a\n" + bytes(80), "HDF5"),
    "x.onnx": (b"\x08\x07\x12\x07pytorch" + bytes(80), "ONNX"),
    "x.tflite": (bytes(4) + b"TFL3" + bytes(80), "TensorFlow Lite"),
    "flax_model.msgpack": (b"\x81\xa6params" + bytes(8), "from_flax"),
    "x.tar": (bytes(257) + b"ustar" + bytes(100), "unpack"),
    "x.gz": (b"\x1f\x8b" + bytes(20), "unpack"),
    "model.safetensors": (b"<!DOCTYPE html><html>", "a web page"),
    "x.parquet": (b"PAR1" + bytes(20), "Parquet"),
    "x.txt": (b"hello", "files of this kind are not read"),
    "empty.bin": (b"", "empty"),
    "text.pt": (b"no pickle", "not a PyTorch file"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_read_is_named(tmp_path: Path, name: str):
    data, word = FOREIGN[name]
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name, name, word)


def test_archives_of_others_are_named(tmp_path: Path):
    np.savez(tmp_path / "x.npz", a=np.ones(3))
    refused(tmp_path / "x.npz", "npz")
    module = torch.export.export(torch.nn.Linear(3, 2), (torch.ones(1, 3),))
    torch.export.save(module, tmp_path / "x.pt2")
    refused(tmp_path / "x.pt2", "torch.export")


def test_a_safetensors_file_that_begins_as_a_pickle_does(tmp_path: Path):
    state = {"w": torch.ones(2, 2)}
    for pad in range(0, 128):
        save_file(state, tmp_path / "x", metadata={"pad": "x" * pad})
        if (tmp_path / "x").read_bytes()[0] == 0x80:
            break
    else:
        raise AssertionError("no header of that length")
    data = bytearray((tmp_path / "x").read_bytes())
    grown = 0x0280 - data[0]
    data[0:8] = (0x0280).to_bytes(8, "little")
    at = 8 + 0x80
    (tmp_path / "x").write_bytes(bytes(data[:at]) + b" " * grown + bytes(data[at:]))
    assert kind_of(tmp_path / "x") == "safetensors"
    opened(tmp_path / "x", state)


def test_pipes_and_devices_do_not_hang(tmp_path: Path):
    os.mkfifo(tmp_path / "model.safetensors.index.json")
    refused(tmp_path, "not a regular file")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not a regular file")
    refused(Path("/dev/zero"), "not a regular file")
    (tmp_path / "model.safetensors.index.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "config.json", "not a regular file")


def test_links(tmp_path: Path, pico: State):
    snapshot, blobs = tmp_path / "snapshots/abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    save_single(pico, blobs)
    (blobs / "model.safetensors").rename(blobs / "deadbeef")
    (snapshot / "model.safetensors").symlink_to("../../blobs/deadbeef")
    opened(snapshot, pico)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../blobs/gone")
    refused(snapshot, "link to ../../blobs/gone", "download")
    refused(snapshot / "model.safetensors", "link to", "not there")
    index = {"weight_map": {"w": "model.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(snapshot, "model.safetensors", "link")


def test_odd_paths(tmp_path: Path):
    given = {"": "not a path", "  ": "not a path", "a\0b": "not a path", "x" * 5000: "cannot be accessed"}
    for path, word in given.items():
        with pytest.raises(CheckpointError, match=word):
            open_checkpoint(path)
    file = tmp_path / "w.safetensors"
    save_file({"w": torch.ones(2)}, file)
    file.chmod(0)
    if os.getuid():
        refused(file, "no permission")


def test_one_word_may_be_an_id_of_the_hub():
    for word in ("gpt2", "bert-base-uncased", "t5-small@main", "org/name"):
        assert hub.looks_like_id(word)
    for word in ("model.safetensors", "x.pt", "./gpt2", "a/b/c", "-x", ""):
        assert not hub.looks_like_id(word)
    with pytest.raises(CheckpointError, match="no such path here, and as a Hugging Face Hub id"):
        open_checkpoint("gpt2-that-is-not-there")


def parts(pico: State, folder: Path, names: list[str], *, disjoint: bool) -> Path:
    folder.mkdir()
    keys = list(pico)
    for i, name in enumerate(names):
        part = {k: pico[k] for k in keys[i :: len(names)]} if disjoint else {k: v[:4] for k, v in pico.items()}
        torch.save(part, folder / name)
    return folder


@pytest.mark.parametrize(
    "names", [["hf_model_0001_0.pt", "hf_model_0002_0.pt"], ["model-1.bin", "model-2.bin", "model-3.bin"]]
)
def test_numbered_shards_are_joined(tmp_path: Path, pico: State, names: list[str]):
    notes = opened(parts(pico, tmp_path / "x", names, disjoint=True), pico)
    assert any("were joined" in note for note in notes)


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (["model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"], "verl.model_merger"),
        (["consolidated.00.pth", "consolidated.01.pth"], "convert_llama_weights_to_hf"),
        (["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"], "DeepSpeed"),
        (["layer_00-model_00-model_states.pt", "layer_01-model_00-model_states.pt"], "pipeline parallel"),
        (["part_1.pt", "part_2.pt"], "the same names"),
    ],
)
def test_slices_are_refused_by_name(tmp_path: Path, pico: State, names: list[str], word: str):
    folder = parts(pico, tmp_path / "x", names, disjoint=False)
    message = refused(folder, word, "parts of one checkpoint")
    assert "give the path of the one to read" not in message
    if word != "the same names":
        refused(folder / names[0], word)
        (folder / names[1]).unlink()
        opened(folder, {k: v[:4] for k, v in pico.items()})


def test_checkpoints_of_one_training_are_no_parts(tmp_path: Path, pico: State):
    """The same names in both: whole checkpoints by what their names say, else slices that nobody should compare."""
    for folder, names, words in (
        ("epochs", ("epoch_1.pt", "epoch_2.pt"), "2 checkpoints of one training"),
        (
            "steps",
            ("model_step_100.safetensors", "model_step_200.safetensors"),
            "name the file of the one that is meant",
        ),
        ("slices", ("model_tp0.safetensors", "model_tp1.safetensors"), "merge them with the trainer's own tool"),
    ):
        (tmp_path / folder).mkdir()
        for name in names:
            path = tmp_path / folder / name
            torch.save(pico, path) if path.suffix == ".pt" else save_file(pico, path)
        refused(tmp_path / folder, words)


def test_a_single_shard_says_what_it_is(tmp_path: Path, pico: State):
    from tests.conftest import save_sharded

    folder = save_sharded(pico, tmp_path / "x")
    notes = open_checkpoint(folder / "model-00002-of-00003.safetensors").notes
    assert any("one of 3 shards" in note for note in notes)


def test_zero_and_fsdp(tmp_path: Path, pico: State):
    empty = {k: torch.empty(0) if v.ndim > 1 else v for k, v in pico.items()}
    (tmp_path / "z").mkdir()
    save_file(empty, tmp_path / "z/model.safetensors")
    torch.save(pico, tmp_path / "z/pytorch_model.bin")
    refused(tmp_path / "z", "shape [0]", "ZeRO-3", "zero_to_fp32.py", "pytorch_model.bin beside it")
    torch.save({"module": empty}, tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    refused(tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt", "ZeRO-3")
    torch.save({"layers.0._fsdp_wrapped_module.flat_param": torch.ones(100)}, tmp_path / "flat.pt")
    refused(tmp_path / "flat.pt", "flat parameters")


def test_consolidated_beside_shards(tmp_path: Path, pico: State):
    from tests.conftest import save_sharded

    folder = save_sharded(pico, tmp_path / "x")
    (folder / "model.safetensors.index.json").unlink()
    save_file({"norm.weight": torch.ones(16)}, folder / "consolidated.safetensors")
    notes = opened(folder, pico)
    assert any("consolidated.safetensors (1 tensor)" in note for note in notes)


def test_what_lies_beside_is_noted(tmp_path: Path, pico: State):
    folder = save_single(pico, tmp_path / "x")
    torch.save({"v_head.summary.weight": torch.ones(1, 16)}, folder / "value_head.bin")
    torch.save(pico, folder / "pytorch_model.bin")
    save_single({"linear.weight": torch.ones(8, 16), "linear.bias": torch.ones(8)}, folder / "2_Dense")
    (folder / "model.Q4_0.gguf").write_bytes(b"GGUF\x03\0\0\0")
    (folder / "tokenizer.model").write_bytes(b"\x0a\x05<unk>")
    torch.save({"state": {}}, folder / "optimizer.pt")
    notes = "\n".join(opened(folder, pico))
    assert "value_head.bin (1 tensor)" in notes
    assert f"pytorch_model.bin ({len(pico)} tensors, all of the same names)" in notes
    assert f"2_Dense{os.sep}model.safetensors (2 tensors)" in notes
    assert "model.Q4_0.gguf (cannot be read: not a complete GGUF file" in notes
    assert "tokenizer" not in notes
    assert "optimizer" not in notes


def raw(path: Path, entries: list[tuple[str, str, list[int], int]], tail: bytes = b"") -> Path:
    header, at = [], 0
    for name, dtype, shape, count in entries:
        about = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + count]}
        header.append(f"{json.dumps(name)}:{json.dumps(about)}")
        at += count
    text = ("{" + ",".join(header) + "}").encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(at) + tail)
    return path


def test_safetensors_that_other_readers_choke_on(tmp_path: Path):
    file = raw(tmp_path / "x", [("a", "F32", [2, 3], 24), ("b", "F4", [4, 8], 16), ("c", "F99", [7], 5)], bytes(64))
    found = open_checkpoint(file)
    assert torch.equal(found.tensors["a"].read(), torch.zeros(2, 3))
    assert {n: h.reason for n, h in found.tensors.items() if isinstance(h, UnreadHandle)} == {
        "b": "unsupported: F4",
        "c": "unsupported: F99",
    }
    assert any("64 bytes behind the last tensor" in note for note in found.notes)
    refused(raw(tmp_path / "y", [("a", "F32", [1], 4), ("a", "F32", [1], 4)]), "twice")
    refused(raw(tmp_path / "z", [("a", "F4", [4, 8], 17)]), "17 bytes")
    refused(raw(tmp_path / "v", [("a", "F32", [0, 2**63], 0)]), "shape")


@pytest.mark.parametrize("name", ["w\ud800", "a\0b", "_" * 20_000, "layers." + "9" * 19 + ".weight", "__metadata__"])
def test_names_that_no_result_can_hold(tmp_path: Path, name: str):
    torch.save({name: torch.ones(2, 2)}, tmp_path / "x.pt")
    message = refused(tmp_path / "x.pt", "x.pt")
    assert len(message) < 500
    assert message.isprintable()
    with pytest.raises(CheckpointError, match="rename it"):
        open_checkpoint({name: torch.ones(2, 2)})


def test_documents_of_others(tmp_path: Path, pico: State):
    folder = save_single(pico, tmp_path / "x")
    for text in ("[" * 100_000, '{"a": ' + "9" * 6000 + "}", "[1]", "\ud800", "{", ""):
        (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        refused(folder, "config.json")
    (folder / "config.json").unlink()
    (folder / "model_index.json").write_text('{".": ["diffusers", "X"]}')
    refused(folder, "not a plain name")


def test_a_file_of_unknown_lora_keys_says_that_it_looks_like_an_adapter(tmp_path: Path):
    import deltaw

    state = {"roberta.encoder.layer.0.attention.self.query.loras.x.lora_A": torch.ones(4, 8)}
    torch.save({**state, "head.weight": torch.ones(2, 8), "head.bias": torch.ones(2)}, tmp_path / "pytorch_adapter.bin")
    with pytest.raises(deltaw.DeltaWError, match="looks like an adapter's, in a layout that is not read"):
        deltaw.analyze(None, str(tmp_path / "pytorch_adapter.bin"))
