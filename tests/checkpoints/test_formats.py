"""The same tensors in every stored form are the same checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import deltaw
from deltaw.checkpoints import open_checkpoint
from deltaw.errors import CheckpointError
from tests.conftest import FORMATS, State, save_bin, save_sharded, save_single


def same(opened, state: State) -> None:
    assert set(opened.tensors) == set(state)
    for name, handle in opened.tensors.items():
        assert handle.name == name
        assert handle.shape == tuple(state[name].shape)
        assert handle.dtype == str(state[name].dtype).removeprefix("torch.")
        assert handle.nbytes == state[name].nbytes
        assert torch.equal(handle.read(), state[name])


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_holds_the_same_tensors(form: str, pico: State, tmp_path: Path):
    opened = open_checkpoint(FORMATS[form](pico, tmp_path / "x"))
    same(opened, pico)
    assert opened.nbytes == sum(t.nbytes for t in pico.values())
    assert opened.files


DTYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int8", "uint8", "bool")


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(form: str, dtype: str, tmp_path: Path):
    state = {"a": torch.randn(3, 5).mul(4).to(getattr(torch, dtype)), "b": torch.ones(()).to(getattr(torch, dtype))}
    opened = open_checkpoint(FORMATS[form](state, tmp_path))
    for name, tensor in state.items():
        read = opened.tensors[name].read()
        assert read.dtype == tensor.dtype
        assert torch.equal(
            read.view(torch.uint8) if read.ndim else read, tensor.view(torch.uint8) if tensor.ndim else tensor
        )


@pytest.mark.parametrize("form", FORMATS)
def test_rows_are_rows(form: str, pico: State, tmp_path: Path):
    handle = open_checkpoint(FORMATS[form](pico, tmp_path / "x")).tensors["lm_head.weight"]
    for rows in (slice(0, 0), slice(3, 7), slice(38, 99), slice(None)):
        assert torch.equal(handle.read(rows), pico["lm_head.weight"][rows])


def test_pickle_with_views_and_ties(tmp_path: Path):
    a = torch.randn(5, 7)
    state = {"a": a, "tied": a, "transposed": a.t(), "rows": a[1:3], "empty": torch.zeros(0, 3), "scalar": a[0, 0]}
    torch.save(state, tmp_path / "x.pt")
    tensors = open_checkpoint(tmp_path / "x.pt").tensors
    for name, tensor in state.items():
        assert torch.equal(tensors[name].read(), tensor)
    assert tensors["a"].storage == tensors["tied"].storage
    assert len({tensors[n].storage for n in state if n != "tied"}) == len(state) - 1
    assert torch.equal(tensors["transposed"].read(slice(2, 4)), a.t()[2:4])


def test_old_pickles(tmp_path: Path, pico: State):
    torch.save(pico, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    same(open_checkpoint(tmp_path / "x.pt"), pico)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module", "model_state_dict"])
def test_wrappers_are_removed_and_reported(wrapper: str, tmp_path: Path, pico: State):
    torch.save({wrapper: pico, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "x.ckpt")
    opened = open_checkpoint(tmp_path / "x.ckpt")
    same(opened, pico)
    assert any(repr(wrapper) in note for note in opened.notes)


def test_a_bare_tensor(tmp_path: Path):
    torch.save(torch.arange(6.0).reshape(2, 3), tmp_path / "x.pt")
    assert list(open_checkpoint(tmp_path / "x.pt").tensors) == ["tensor"]


def test_modules_and_state_dicts(pico: State):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    same(open_checkpoint(module), dict(module.state_dict()))
    same(open_checkpoint(pico), pico)
    with pytest.raises(CheckpointError, match="is a float"):
        open_checkpoint({"a": 1.0})


def test_the_index_decides(tmp_path: Path, pico: State):
    folder = save_sharded(pico, tmp_path / "x")
    stale = {name: torch.zeros_like(t) for name, t in pico.items()}
    save_file(stale, folder / "model-00004-of-00004.safetensors")
    save_file(stale, folder / "model.safetensors")
    opened = open_checkpoint(folder)
    same(opened, pico)
    assert sum("was ignored" in note for note in opened.notes) == 2


def test_numbered_shards_without_an_index(tmp_path: Path, pico: State):
    folder = save_sharded(pico, tmp_path / "x")
    (folder / "model.safetensors.index.json").unlink()
    same(open_checkpoint(folder), pico)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="not all of them"):
        open_checkpoint(folder)


def test_trainer_files_are_no_weights(tmp_path: Path, pico: State):
    folder = save_bin(pico, tmp_path / "x")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"):
        torch.save({"x": torch.ones(1)}, folder / name)
    opened = open_checkpoint(folder)
    same(opened, pico)
    assert not opened.notes


def test_a_pipeline_is_its_components(tmp_path: Path, pico: State):
    folder = tmp_path / "pipe"
    save_single(pico, folder / "unet")
    (folder / "unet" / "model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.safetensors")
    save_single({"w": torch.ones(2, 2)}, folder / "text_encoder")
    (folder / "scheduler").mkdir()
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    opened = open_checkpoint(folder)
    assert opened.format == "diffusers"
    same(opened, {f"unet.{k}": v for k, v in pico.items()} | {"text_encoder.w": torch.ones(2, 2)})


def test_tied_tensors_count_once(pico: State):
    pico["lm_head.weight"] = pico["model.embed_tokens.weight"]
    once = sum(t.nbytes for n, t in pico.items() if n != "lm_head.weight")
    assert open_checkpoint(pico).nbytes == once


def test_the_other_names_of_shared_tensors(tmp_path: Path):
    """`save_model` stores a shared tensor once; a head that training untied from its embedding is compared."""
    base = {"wte.weight": torch.ones(4, 3), "h.weight": torch.ones(3, 3)}
    ft = {
        "wte.weight": torch.full((4, 3), 2.0),
        "h.weight": torch.ones(3, 3),
        "lm_head.weight": torch.full((4, 3), 3.0),
    }
    save_file(base, tmp_path / "b.safetensors", metadata={"format": "pt", "lm_head.weight": "wte.weight"})
    save_file(ft, tmp_path / "f.safetensors")
    rows = {
        r["name"]: r["fro_norm"] for r in deltaw.analyze(tmp_path / "b.safetensors", tmp_path / "f.safetensors").rows
    }
    assert rows == pytest.approx({"wte.weight": 12**0.5, "h.weight": 0, "lm_head.weight": 2 * 12**0.5})
    same = deltaw.analyze(tmp_path / "b.safetensors", tmp_path / "b.safetensors")
    assert [(s.name, s.reason) for s in same.skipped] == [("lm_head.weight", "tied_to wte.weight")]
    assert deltaw.analyze(tmp_path / "b.safetensors", base).summary.coverage.share == 1
