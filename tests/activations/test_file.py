"""`activations.safetensors`: what is written is read, and what is no such file is one line."""

import json

import pytest
import torch
from safetensors.torch import save_file

from deltaw.activations import open_activations
from deltaw.activations.file import FORMAT, KEY, write_activations
from deltaw.activations.moments import Moments
from deltaw.errors import ActivationsError

EYE = torch.eye(3, dtype=torch.float64)


def test_what_is_written_is_read(tmp_path):
    shared = Moments("moments", 2 * EYE, 2, 6.0)
    given = {
        "q.weight": shared,
        "k.weight": shared,
        "wide.weight": Moments("sketch", EYE[:2], 5, 4.0, 0.5),
        "é.weight": Moments("counts", torch.tensor([1.0, 2.0], dtype=torch.float64), 3, 3.0),
    }
    written = write_activations(tmp_path / "new" / "a.safetensors", given, unseen=["x"], inputs="3 tokens")
    found = open_activations(str(written.path))
    assert (found.unseen, found.inputs, found.hash) == (("x",), "3 tokens", written.hash)
    for name, m in given.items():
        read = found.moments(name)
        assert (read.form, read.count, read.energy, read.error) == (m.form, m.count, m.energy, m.error)
        assert torch.equal(read.sums, m.sums)
    assert repr(found) == f"<Activations {written.path}: 4 matrices, up to 5 inputs each>"
    assert [p.name for p in written.path.parent.iterdir()] == ["a.safetensors"]
    with pytest.raises(ActivationsError, match=r"no inputs of 'q.weigth'. Did you mean 'q.weight'"):
        found.moments("q.weigth")


def file_of(path, tensors, **about):
    text = {"format": FORMAT, "matrices": {}} | about
    save_file(tensors, path, metadata={KEY: json.dumps(text)})
    return path


def entry(**changes):
    return {"w": {"tensor": "w", "form": "moments", "count": 2, "energy": 6.0, "error": 0.0} | changes}


@pytest.mark.parametrize(
    ("tensors", "about", "message"),
    [
        ({"w": EYE}, {"format": 2}, "has format 2, expected 1"),
        ({"w": EYE}, {"matrices": 3}, "expected an object"),
        ({"w": EYE}, {"matrices": entry(tensor="v")}, "not second moments"),
        ({"w": EYE}, {"matrices": entry(form="mean")}, "not second moments"),
        ({"w": EYE}, {"matrices": entry(form="counts")}, "not second moments"),
        ({"w": EYE}, {"matrices": entry(count=0)}, "not second moments"),
        ({"w": EYE}, {"matrices": entry(energy=-1.0)}, "not second moments"),
        ({"w": EYE}, {"matrices": entry(count=1.5)}, "expected a whole number"),
        ({"w": EYE.float()}, {"matrices": entry()}, "not second moments"),
        ({"w": EYE[:2]}, {"matrices": entry()}, "not second moments"),
    ],
)
def test_a_file_that_lies_is_refused_when_it_is_opened(tmp_path, tensors, about, message):
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    with pytest.raises(ActivationsError, match=message):
        open_activations(file_of(tmp_path / "a", tensors, **about))


@pytest.mark.parametrize("sums", [EYE * torch.nan, -EYE])
def test_sums_that_are_none_are_refused_when_they_are_read(tmp_path, sums):
    found = open_activations(file_of(tmp_path / "a", {"w": sums}, matrices=entry()))
    with pytest.raises(ActivationsError, match="no second moments have"):
        found.moments("w")


def test_sums_with_a_negative_direction_are_refused_when_they_are_met():
    indefinite = torch.ones(3, 3, dtype=torch.float64) - 0.5 * EYE
    with pytest.raises(ActivationsError, match="eigenvalue of -0"):
        Moments("moments", indefinite, 1, 1.5).apply(EYE)


def test_what_is_no_file_of_activations(tmp_path):
    with pytest.raises(ActivationsError, match="no such file"):
        open_activations(tmp_path / "a")
    with pytest.raises(ActivationsError, match="is a folder"):
        open_activations(tmp_path)
    save_file({"w": EYE}, tmp_path / "w")
    with pytest.raises(ActivationsError, match="without activations"):
        open_activations(tmp_path / "w")
    (tmp_path / "text").write_text("not safetensors")
    with pytest.raises(ActivationsError, match="cannot be read"):
        open_activations(tmp_path / "text")
    whole = file_of(tmp_path / "whole", {"w": EYE}, matrices=entry()).read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-8])
    with pytest.raises(ActivationsError, match="cannot be read"):
        open_activations(tmp_path / "cut")
