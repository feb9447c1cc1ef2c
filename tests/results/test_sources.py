"""The hash of what was read: the same wherever the files lie, another where a header or a sampled byte differs."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import deltaw
from deltaw.results import sources
from deltaw.results.sources import ENDS, SAMPLE, FileStamp, content_hash


def of(*paths: Path) -> str:
    return content_hash([FileStamp.of(p) for p in paths])


def written(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(i % 251 for i in range(1000)) * (size // 1000) + bytes(size % 1000))
    return path


def test_names_times_places_and_order_do_not_enter(tmp_path: Path):
    one, two = written(tmp_path / "a" / "x.safetensors", 5000), written(tmp_path / "a" / "y.safetensors", 3 * ENDS)
    first = of(one, two)
    moved = written(tmp_path / "b" / "p", 3 * ENDS), written(tmp_path / "b" / "q", 5000)
    for path in moved:
        os.utime(path, (1, 1))
    assert of(*moved) == first
    assert first.startswith("sampled-sha256:")
    assert len(first) == len("sampled-sha256:") + 64
    assert of(one) != first
    assert of(one, one, two) != first


@pytest.mark.parametrize("size", [1, 5000, ENDS, 2 * ENDS - 1, 2 * ENDS])
def test_every_byte_of_a_small_file_enters(tmp_path: Path, size: int):
    path = written(tmp_path / "x", size)
    first = of(path)
    for at in {0, size // 2, size - 1}:
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        other = tmp_path / "y"
        other.write_bytes(data)
        assert of(other) != first, at


def test_samples_lie_evenly_between_the_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ends = 2 * SAMPLE
    monkeypatch.setattr(sources, "ENDS", ends)  # the same on a small file
    path = written(tmp_path / "x", 6 * ends + 17)
    first, data = of(path), bytearray(path.read_bytes())
    entered = []
    for at in range(ends, len(data) - ends, SAMPLE // 2):
        data[at] ^= 1
        path.write_bytes(data)
        entered += [at] if of(path) != first else []
        data[at] ^= 1
    places = [k * ends + half for k in range(1, 6) for half in (0, SAMPLE // 2)]
    assert entered == [at for at in places if at < len(data) - ends]
    path.write_bytes(data + b"\0")
    assert of(path) != first  # the size


def test_the_whole_header_of_safetensors_enters(tmp_path: Path):
    def long(last: str) -> Path:
        many = {f"layer.{i}.{'x' * 200}": torch.zeros(1) for i in range(6000)}
        path = tmp_path / "x.safetensors"
        save_file({**many, f"layer.9999.{last}": torch.zeros(3 * ENDS // 4)}, path)
        return path

    first = of(long("a"))
    assert (tmp_path / "x.safetensors").read_bytes()[0] != 0
    assert int.from_bytes((tmp_path / "x.safetensors").read_bytes()[:8], "little") > ENDS
    assert of(long("b")) != first
    assert of(long("a")) == first


def test_what_is_not_what_it_was_has_no_hash(tmp_path: Path):
    path = written(tmp_path / "x", 100)
    stamp = FileStamp.of(path)
    path.write_bytes(b"other")
    assert content_hash([stamp]) == ""
    path.unlink()
    assert content_hash([stamp]) == ""
    assert content_hash([]) == ""


def test_it_reads_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.truncate(1 << 33)  # sparse: takes no room
    read = []

    real = sources.hashlib.sha256
    monkeypatch.setattr(sources.hashlib, "sha256", lambda data=b"": Spy(real(data), read))
    assert of(path)
    assert sum(read) <= 2 * ENDS + 1024 * SAMPLE


class Spy:
    def __init__(self, digest: object, read: list[int]) -> None:
        self._digest, self._read = digest, read

    def update(self, data: bytes) -> None:
        self._read.append(len(data))
        self._digest.update(data)  # type: ignore[attr-defined]

    def digest(self) -> bytes:
        return self._digest.digest()  # type: ignore[attr-defined, no-any-return]

    def hexdigest(self) -> str:
        return self._digest.hexdigest()  # type: ignore[attr-defined, no-any-return]


def test_an_analysis_knows_both_and_says_so(tmp_path: Path):
    base, ft = {"w": torch.eye(8)}, {"w": 2 * torch.eye(8)}
    paths = [tmp_path / "base" / "model.safetensors", tmp_path / "ft" / "model.safetensors"]
    for path, state in zip(paths, (base, ft), strict=True):
        path.parent.mkdir()
        save_file(state, path)
    result = deltaw.analyze(tmp_path / "base", tmp_path / "ft", out=tmp_path / "out")
    assert result.base is not None
    assert (result.base.hash, result.ft.hash) == (of(paths[0]), of(paths[1]))
    loaded = deltaw.load(tmp_path / "out")
    assert loaded.base is not None
    assert (loaded.base.hash, loaded.ft.hash) == (result.base.hash, result.ft.hash)
    page = result.report(tmp_path / "report.html").read_text()
    reproduce = page.partition('id="reproduce"')[2].partition('id="cite"')[0]
    assert result.base.hash in reproduce
    assert result.ft.hash in reproduce
    assert deltaw.analyze(base, ft).ft.hash == ""  # of a model in memory there is no file
