"""Hostile pickles: nothing runs, nothing is imported, nothing takes more than the file's own memory."""

import io
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deltaw.checkpoints import UnreadHandle, open_checkpoint
from deltaw.errors import CheckpointError, DeltaWError
from tests.checkpoints.archives import rezip

MARKER = "deltaw-was-here"


class Call:
    """Pickles to a call of a function."""

    def __init__(self, function: object, *args: object) -> None:
        self.made = (function, args)

    def __reduce__(self):
        return self.made


def op(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def glob(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


LOL = b"".join(b"h" + bytes([k]) + b"h" + bytes([k]) + b"\x87q" + bytes([k + 1]) for k in range(1, 200))
STORAGE = b"(" + text("storage") + glob("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x10tQ"
TENSOR = glob("torch._utils", "_rebuild_tensor_v2")


def tensor(offset: bytes, shape: bytes, strides: bytes) -> bytes:
    return op(b"}", text("w"), TENSOR, b"(", STORAGE, offset, shape, strides, b"\x89", b"}", b"tR", b"s")


HUGE = b"\x8a\x09" + (2**64).to_bytes(9, "little")
HOSTILE: dict[str, bytes | object] = {
    "os.system": {"w": torch.ones(2), "x": Call(os.system, f"touch {MARKER}")},
    "exec": {"w": torch.ones(2), "x": Call(exec, f"open({MARKER!r}, 'w')")},
    "eval": {"w": torch.ones(2), "x": Call(eval, f"open({MARKER!r}, 'w')")},
    "open": {"w": torch.ones(2), "x": Call(open, MARKER, "w")},
    "subprocess": {"w": torch.ones(2), "x": Call(subprocess.check_call, ["touch", MARKER])},
    "mkdir": {"w": torch.ones(2), "x": Call(os.mkdir, MARKER)},
    "an instance": op(b"(", text(f"touch {MARKER}"), b"iposix\nsystem\n"),
    "an object": op(b"(", glob("posix", "system"), text(f"touch {MARKER}"), b"o"),
    "NEWOBJ of Popen": op(glob("subprocess", "Popen"), text(f"touch {MARKER}"), b"\x85\x81"),
    "a stack global": op(text("posix"), text("system"), b"\x93", text(f"touch {MARKER}"), b"\x85R"),
    "a lookup through getattr": op(
        glob("builtins", "getattr"), glob("posix", "system").replace(b"system", b"path"), text("x"), b"\x86R", b")R"
    ),
    "__setstate__ of a class": op(
        glob("pathlib", "PosixPath"), b")\x81", b"}", text("__class__"), glob("posix", "system"), b"sb"
    ),
    "memory by a memo index": op(b"Nr\xff\xff\xff\x7f"),
    "memory by a length": op(b"\x8e" + struct.pack("<Q", 2**62)),
    "a bytearray of an exabyte": b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b".",
    "billion laughs": op(text("lol"), b"q\x01", LOL),
    "a billion laughs key": op(b"}", text("lol"), b"q\x01", LOL, b"K\x01s"),
    "laughs of mappings": op(
        b"}q\x01",
        *(
            b"}" + b"(X\x01\0\0\0ah" + bytes([k]) + b"X\x01\0\0\0bh" + bytes([k]) + b"uq" + bytes([k + 1])
            for k in range(1, 90)
        ),
    ),
    "copies of one text": op(
        text("a" * 200_000),
        b"q\x01",
        b"".join([glob("_codecs", "encode") + b"h\x01" + text("latin1") + b"\x86R"] * 2000),
        b"N",
    ),
    "names of a megabyte": op(text("a" * 1_000_000), b"q\x01", b"h\x01h\x01\x93" * 2000),
    "deep": op(b"]" * 100_000, b"a" * 99_999),
    "deep mappings": op(b"}", (text("a") + b"}") * 50_000, b"s" * 50_000),
    "a mapping that holds itself": op(b"}q\x01", text("model"), b"h\x01s"),
    "an empty stack": op(b"R"),
    "no mark": op(b"N", b"t"),
    "a mark where a value goes": op(b"}((s"),
    "a memo that is not there": op(b"h\x07"),
    "an extension code": op(b"\x82\x01"),
    "an unknown opcode": op(b"\xff"),
    "no end": b"\x80\x02}",
    "a number of a million digits": b"\x80\x02L" + b"9" * 1_000_000 + b"L\n.",
    "offset behind the storage": tensor(b"K\x0f", b"K\x02K\x02\x86", b"K\x02K\x01\x86"),
    "negative offset": tensor(b"J\xff\xff\xff\xff", b"K\x02K\x02\x86", b"K\x02K\x01\x86"),
    "negative strides": tensor(b"K\x00", b"K\x02K\x02\x86", b"J\xfe\xff\xff\xffK\x01\x86"),
    "a huge shape": tensor(b"K\x00", HUGE + b"K\x02\x86", b"K\x02K\x01\x86"),
    "stride zero": tensor(b"K\x00", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", b"K\x00K\x00\x86"),
    "a shape of texts": tensor(b"K\x00", text("x") + b"K\x02\x86", b"K\x02K\x01\x86"),
    "no storage": op(b"}", text("w"), TENSOR, b"(", b"N", b"K\0", b"K\x02\x85", b"K\x01\x85", b"\x89}tR", b"s"),
    "a name of surrogates": op(b"}", text("w\ud800"), TENSOR, b"(", STORAGE, b"K\0K\x02\x85K\x01\x85\x89}tR", b"s"),
    "a name of 5,000 characters": op(
        b"}", text("w" * 5000), TENSOR, b"(", STORAGE, b"K\0K\x02\x85K\x01\x85\x89}tR", b"s"
    ),
}


def hostile_file(payload: object, folder: Path, zipped: bool) -> Path:
    file = folder / "x.pt"
    if not isinstance(payload, bytes):
        torch.save(payload, file, _use_new_zipfile_serialization=zipped)
    elif zipped:
        torch.save({"w": torch.zeros(16)}, folder / "t.pt")
        rezip(folder / "t.pt", file, lambda n, b: payload if n.endswith("data.pkl") else b)
    else:
        file.write_bytes(payload)
    return file


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "alone"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, zipped: bool):
    """Nothing runs; what is no error of ours is read right; nothing takes more than the file's own memory."""
    monkeypatch.chdir(tmp_path)
    file = hostile_file(HOSTILE[name], tmp_path, zipped)
    before = set(sys.modules)
    room = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = ""
    try:
        tensors = open_checkpoint(file).tensors
        for handle in tensors.values():
            if not isinstance(handle, UnreadHandle):
                assert handle.nbytes <= file.stat().st_size
                assert handle.read().shape == handle.shape
    except DeltaWError as e:
        message = str(e)
    assert len(message) < 1000
    assert message.isprintable()
    assert not (tmp_path / MARKER).exists()
    assert not {m for m in set(sys.modules) - before if m.startswith(("pty", "webbrowser", "subprocess"))}
    taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - room) * 1024
    assert taken < 64 * 2**20 + 100 * file.stat().st_size


@pytest.mark.parametrize("zipped", [True, False])
def test_an_attack_is_refused_by_name(tmp_path: Path, zipped: bool):
    file = hostile_file({"w": torch.ones(2), "x": Call(os.system, "true")}, tmp_path, zipped)
    with pytest.raises(CheckpointError, match=r"it would call (posix|nt)\.system when loaded, which could run code"):
        open_checkpoint(file)


def test_bytes_of_a_nested_file_are_bounded(tmp_path: Path):
    inner = io.BytesIO()
    torch.save(torch.ones(1000, 100), inner, _use_new_zipfile_serialization=False)
    nested = b"B" + struct.pack("<I", len(inner.getvalue())) + inner.getvalue()
    load = glob("torch.storage", "_load_from_bytes")
    again = b"".join([load + b"h\x01\x85R"] * 500)
    (tmp_path / "x.pt").write_bytes(b"\x80\x03" + nested + b"q\x01" + again + b".")
    with pytest.raises(CheckpointError, match="unfolds"):
        open_checkpoint(tmp_path / "x.pt")
