"""Pickles are read for their tensors and never run: honest ones equal torch.load, hostile ones do nothing."""

import argparse
import collections
import enum
import pathlib
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from deltaw.checkpoints import UnreadHandle, open_checkpoint
from deltaw.errors import CheckpointError
from deltaw.types import Reason
from tests.checkpoints.archives import rezip

G = torch.Generator().manual_seed(0)


def rnd(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=G).to(dtype)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)
        self.norm = torch.nn.BatchNorm1d(3)
        self.register_buffer("mask", torch.ones(2), persistent=False)
        self.scale = torch.nn.Parameter(rnd(3))


class Anything:
    """A trainer's own object, of a class that is not there when the file is opened."""

    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


class Colour(enum.Enum):
    RED = 1


Anything.__module__ = "omegaconf.dictconfig"
_fake = types.ModuleType("omegaconf.dictconfig")
_fake.Anything = Anything  # type: ignore[attr-defined]
SD = {"a.weight": rnd(4, 3), "a.bias": rnd(4), "b.weight": rnd(3, 3, dtype=torch.bfloat16), "n": torch.tensor(3)}
BIG = rnd(8, 8)
SHARED = rnd(3, 5)


class Cast(torch.Tensor):
    """A subclass whose stored numbers are the tensor's."""


# (name, what is saved, the state dict that it must be read as)
HONEST: list[tuple[str, Callable[[], object], dict[str, torch.Tensor]]] = [
    ("a state dict", lambda: SD, SD),
    ("an OrderedDict with metadata", lambda: torch.nn.Linear(3, 2).requires_grad_(False).state_dict(), {}),
    ("parameters", lambda: {k: torch.nn.Parameter(v, requires_grad=False) for k, v in SD.items()}, SD),
    (
        "views and ties",
        lambda: {"t": BIG.t(), "rows": BIG[2:5], "cols": BIG[:, 1::3], "tied": BIG, "too": BIG},
        {"t": BIG.t(), "rows": BIG[2:5], "cols": BIG[:, 1::3], "tied": BIG, "too": BIG},
    ),
    ("every dtype", lambda: {str(d): torch.ones(2, 3).to(d) for d in DTYPES}, {}),
    (
        "empty tensors and scalars",
        lambda: {"e": torch.empty(0, 3), "s": torch.tensor(2.5)},
        {"e": torch.empty(0, 3), "s": torch.tensor(2.5)},
    ),
    (
        "nanoGPT",
        lambda: {
            "model": SD,
            "optimizer": {"state": {0: {"exp_avg": rnd(4, 3)}}, "param_groups": [{"lr": 1}]},
            "best_val_loss": torch.tensor(3.2),
        },
        SD,
    ),
    ("ImageNet example", lambda: {"epoch": 3, "arch": "x", "state_dict": SD, "best_acc1": torch.tensor(71.0)}, SD),
    (
        "Lightning with OmegaConf",
        lambda: {
            "state_dict": SD,
            "optimizer_states": [{"state": {0: {"exp_avg": rnd(3)}}}],
            "hyper_parameters": Anything(content={"lr": 0.1}),
            "callbacks": {"ema": {"w": rnd(2)}},
        },
        SD,
    ),
    ("NumPy scalars", lambda: {"model": SD, "loss": np.float64(1.5), "step": np.int64(3)}, SD),
    ("NumPy arrays beside", lambda: {"model_state": SD, "history": np.arange(5.0), "random_state": np.arange(3)}, SD),
    (
        "a Namespace, a path, an enum, a set",
        lambda: {
            "args": argparse.Namespace(x=1),
            "where": pathlib.PurePosixPath("/x"),
            "c": Colour.RED,
            "s": {1, 2},
            "net": SD,
        },
        SD,
    ),
    (
        "a defaultdict and a Counter",
        lambda: {"weights": collections.defaultdict(list, SD), "c": collections.Counter("abc")},
        SD,
    ),
    (
        "torch.Size, dtype, device",
        lambda: {"shape": torch.Size([2, 3]), "dtype": torch.float16, "device": torch.device("cpu"), "params": SD},
        SD,
    ),
    (
        "nested by module",
        lambda: {
            "model": {"language_model": {"embedding": {"weight": SD["a.weight"]}, "head": {"bias": SD["a.bias"]}}}
        },
        {"language_model.embedding.weight": SD["a.weight"], "language_model.head.bias": SD["a.bias"]},
    ),
    ("the only mapping", lambda: {"my_own_name": SD, "step": 3}, SD),
    ("wrapped twice", lambda: {"state_dict": {"model": SD}}, SD),
    (
        "DeepSpeed",
        lambda: {
            "module": SD,
            "buffer_names": [],
            "optimizer": None,
            "param_shapes": [{k: v.shape for k, v in SD.items()}],
            "ds_config": {"a": 1},
        },
        SD,
    ),
    ("BasicSR", lambda: {"params": SD, "params_ema": {k: v * 0 for k, v in SD.items()}}, SD),
    ("a list of tensors", lambda: [SD["a.weight"], SD["a.bias"]], {"0": SD["a.weight"], "1": SD["a.bias"]}),
    ("a bare tensor", lambda: SHARED, {"tensor": SHARED}),
    ("a tensor subclass", lambda: {"w": SHARED.as_subclass(Cast)}, {"w": SHARED}),
    (
        "a negated view",
        lambda: {"w": torch._neg_view(SHARED), "v": torch.ones(2, 2, dtype=torch.cfloat).mul(1 + 2j).conj().imag},
        {"w": torch._neg_view(SHARED), "v": torch.full((2, 2), -2.0)},
    ),
    ("numbers as names", lambda: {0: SD["a.weight"], 1: SD["a.bias"]}, {"0": SD["a.weight"], "1": SD["a.bias"]}),
]
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.bool,
    torch.complex64,
]


@pytest.fixture
def omegaconf(monkeypatch: pytest.MonkeyPatch):
    """The class can be pickled, as it can be where a file is written."""
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", _fake)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(("name", "make", "want"), HONEST, ids=[h[0] for h in HONEST])
@pytest.mark.usefixtures("omegaconf")
def test_honest(tmp_path: Path, name: str, make: Callable[[], object], want: dict[str, torch.Tensor], zipped: bool):
    file = tmp_path / "x.pt"
    saved = make()
    torch.save(saved, file, _use_new_zipfile_serialization=zipped)
    if not want:
        assert isinstance(saved, dict)
        want = dict(saved)
    # torch cannot read back its own legacy files of the dtypes that have no typed storage.
    loaded = torch.load(file, weights_only=False) if zipped or name != "every dtype" else saved
    tensors = open_checkpoint(file).tensors
    assert list(tensors) == list(want)
    for key, tensor in want.items():
        same(tensors[key].read(), tensor)
    if isinstance(loaded, dict) and set(want) <= set(loaded):
        for key in want:
            same(tensors[key].read(), loaded[key])


def same(found: torch.Tensor, want: torch.Tensor) -> None:
    assert found.shape == want.shape
    assert found.dtype == want.dtype
    want = want.detach().as_subclass(torch.Tensor).resolve_neg()
    assert bytes_of(found) == bytes_of(want)


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.resolve_neg().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def test_whole_modules(tmp_path: Path):
    model = torch.nn.Sequential(Block(), torch.nn.ModuleDict({"model": torch.nn.Linear(3, 2)}))
    torch.save(model, tmp_path / "x.pt")
    opened = open_checkpoint(tmp_path / "x.pt")
    want = model.state_dict()
    assert set(opened.tensors) == set(want)
    for name, tensor in want.items():
        same(opened.tensors[name].read(), tensor)
    assert any("Sequential" in note and "nothing of it was run" in note for note in opened.notes)


def test_torchscript(tmp_path: Path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *a, **k: None)  # torch calls its own format old
        torch.jit.script(model).save(tmp_path / "x.pt")
    opened = open_checkpoint(tmp_path / "x.pt").tensors
    for name, tensor in model.state_dict().items():
        same(opened[name].read(), tensor)


def test_pickle_dump_of_tensors_and_of_arrays(tmp_path: Path):
    with (tmp_path / "x.pt").open("wb") as file:
        pickle.dump({"model": SD}, file)
    for name, tensor in SD.items():
        same(open_checkpoint(tmp_path / "x.pt").tensors[name].read(), tensor)
    arrays = {
        "w": np.arange(6.0).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "big": np.arange(4, dtype=">f4"),
    }
    for protocol in (2, 4, 5):
        (tmp_path / "y.pt").write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}, protocol=protocol))
        opened = open_checkpoint(tmp_path / "y.pt").tensors
        for name, array in arrays.items():
            assert np.array_equal(opened[name].read().numpy(), array)


UNREAD: list[tuple[str, Callable[[], torch.Tensor], str]] = [
    ("sparse", lambda: torch.eye(3).to_sparse(), "unsupported: sparse_coo"),
    ("csr", lambda: torch.eye(3).to_sparse_csr(), "unsupported: sparse_csr"),
    ("meta", lambda: torch.empty(3, 3, device="meta"), "unsupported: meta"),
    ("nested", lambda: torch.nested.nested_tensor([rnd(2), rnd(3)]), "unsupported: nested tensor"),
    ("qint8", lambda: torch.quantize_per_tensor(rnd(4, 4), 0.1, 0, torch.qint8), "quantised: qint8"),
    ("conjugated", lambda: torch.ones(2, 2, dtype=torch.complex64).conj(), "unsupported: conjugated view"),
    ("expanded", lambda: torch.ones(1).expand(30_000, 30_000), "unsupported: expanded view"),
]


@pytest.mark.parametrize(("name", "make", "reason"), UNREAD, ids=[u[0] for u in UNREAD])
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_that_is_not_read_has_its_reason(
    tmp_path: Path, name: str, make: Callable[[], torch.Tensor], reason: str
):
    torch.save({"a.weight": SD["a.weight"], "x": make()}, tmp_path / "x.pt")
    tensors = open_checkpoint(tmp_path / "x.pt").tensors
    same(tensors["a.weight"].read(), SD["a.weight"])
    handle = tensors["x"]
    assert isinstance(handle, UnreadHandle)
    assert handle.reason.startswith(reason)
    with pytest.raises(CheckpointError, match="'x' is not read"):
        handle.read()


def test_what_else_holds_weights_is_named_and_can_be_chosen(tmp_path: Path):
    ema = {k: v + 1 if v.is_floating_point() else v for k, v in SD.items()}
    torch.save({"model": SD, "ema": ema, "nested": {"teacher": ema}, "args": 1}, tmp_path / "x.pt")
    opened = open_checkpoint(tmp_path / "x.pt")
    assert any("FILE::ema" in note and "4 tensors" in note for note in opened.notes)
    for choice in ("ema", "nested.teacher", "teacher"):
        chosen = open_checkpoint(f"{tmp_path / 'x.pt'}::{choice}")
        same(chosen.tensors["a.weight"].read(), ema["a.weight"])
    same(open_checkpoint(f"{tmp_path / 'x.pt'}::model").tensors["a.weight"].read(), SD["a.weight"])
    with pytest.raises(CheckpointError, match="no mapping of that name; those with tensors are model, ema"):
        open_checkpoint(f"{tmp_path / 'x.pt'}::emma")


def test_optimizer_state_is_no_model(tmp_path: Path):
    torch.save({"optimizer_state_dict": {"fp32_flat_groups": [rnd(10)]}, "scheduler": {"x": rnd(2)}}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"no tensors found \(it holds: optimizer_state_dict, scheduler"):
        open_checkpoint(tmp_path / "x.pt")


def test_one_and_the_text_one_are_two_tensors(tmp_path: Path):
    torch.save({1: torch.zeros(3, 3), "1": torch.ones(3, 3)}, tmp_path / "x.pt")
    tensors = open_checkpoint(tmp_path / "x.pt").tensors
    same(tensors["1"].read(), torch.ones(3, 3))
    assert isinstance(tensors["1 (number)"], UnreadHandle)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.save({"w": torch.ones(64, 64), "z": torch.ones(64, 64)}, tmp_path / "a.pt")
    return tmp_path / "a.pt"


def test_archives_that_torch_would_not_read_so(saved: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match="compressed"):
        open_checkpoint(rezip(saved, tmp_path / "b.pt", lambda n, b: b, zipfile.ZIP_DEFLATED))
    with pytest.raises(CheckpointError, match="big-endian"):
        open_checkpoint(rezip(saved, tmp_path / "b.pt", lambda n, b: b"big" if n.endswith("byteorder") else b))
    short = rezip(saved, tmp_path / "b.pt", lambda n, b: b[:100] if n.endswith("/data/0") else b)
    tensors = open_checkpoint(short).tensors
    assert isinstance(tensors["w"], UnreadHandle)
    assert tensors["w"].reason.startswith("failed: its storage holds 100 bytes")
    same(tensors["z"].read(), torch.ones(64, 64))
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as new:
        new.writestr("x/y", "z")
    with pytest.raises(CheckpointError, match="a zip archive, but none"):
        open_checkpoint(tmp_path / "c.pt")


def test_a_legacy_file_with_an_archive_behind_it(tmp_path: Path):
    torch.save({"w": torch.ones(3, 3)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(tmp_path / "a.pt", "a") as file:
        file.writestr("x", "y")
    same(open_checkpoint(tmp_path / "a.pt").tensors["w"].read(), torch.ones(3, 3))


def test_a_legacy_file_that_ends_early(tmp_path: Path):
    torch.save({"w": torch.ones(3, 3), "z": torch.ones(40)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(data[:-8])
    tensors = open_checkpoint(tmp_path / "a.pt").tensors
    assert sum(isinstance(h, UnreadHandle) and h.because == Reason.FAILED for h in tensors.values()) == 1
