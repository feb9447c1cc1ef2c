"""Ways to damage a file so that it still looks like one: its structure is kept, a value in it is not.

A mutation follows from its generator alone, so that a finding is repeated by its number.
"""

import copy
import io
import json
import struct
import zipfile
from collections.abc import Iterator
from random import Random
from typing import Any

# What a reader did not expect, of every type that JSON has.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 255, 2**31, 2**63, 2**64, 10**30, -(2**63) - 1),
    *(0.0, 0.5, -1.5, 1e308, 5e-324, float("nan"), float("inf"), -float("inf")),
    *("", " ", "x", "0", "-1", "*", "[", "(", "a{9999999999}", "^((a|aa)+)+[0-9]$", ".", "..", "../../x", "/dev/zero"),
    *("a" * 300, "a" * 5000, "_" * 20000, "\x00", "\x1b[2J", "\u202e", "\ud800", "none", "null", "F32", "BF16", "I8"),
    *("LORA", "float32", "model.layers.99999999999999999999.weight", "lora_A", "all-linear"),
    *([], [[]], [0], ["x"], [None], [2**63], [-1, 3], [0, 0], {}, {"x": 1}, {"": {}}, [{}], {"a": []}),
)
DEEP: Any = json.loads("[" * 400 + "]" * 400)


def mutate_json(document: Any, r: Random) -> Any:
    """The document with one to three values replaced, removed, renamed, doubled or moved."""
    out = copy.deepcopy(document)
    for _ in range(r.choice((1, 1, 1, 2, 3))):
        places = list(_places(out))
        if not places:
            return copy.deepcopy(r.choice(VALUES))
        parent, key = r.choice(places)
        kind = r.randrange(6)
        if kind == 0 and isinstance(parent, dict):
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            renamed = r.choice(("x", "", "a" * 2000, "\ud800", f"{key}.", str(key).upper(), "__metadata__"))
            parent[renamed] = parent.pop(key)
        elif kind == 2:
            parent[key] = copy.deepcopy(r.choice(places)[0])
        elif kind == 3 and isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool):
            parent[key] = parent[key] + r.choice((-1, 1, 8, -8, 1 << 20, 1 << 40))
        elif kind == 4 and r.random() < 0.1:
            parent[key] = copy.deepcopy(DEEP)
        else:
            parent[key] = copy.deepcopy(r.choice(VALUES))
    return out


def _places(node: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        yield node, key
        if depth < 50:  # DEEP is deeper than this may go
            yield from _places(node[key], depth + 1)


def mutate_bytes(data: bytes, r: Random) -> bytes:
    """Bytes flipped, removed, doubled, overwritten or cut off."""
    out = bytearray(data)
    for _ in range(r.choice((1, 1, 2, 4))):
        if not out:
            return r.randbytes(r.randrange(64))
        at, length = r.randrange(len(out)), r.choice((1, 1, 2, 4, 8, 64))
        kind = r.randrange(6)
        if kind == 0:
            out[at] ^= 1 << r.randrange(8)
        elif kind == 1:
            del out[at : at + length]
        elif kind == 2:
            out[at:at] = out[at : at + length]
        elif kind == 3:
            out[at : at + length] = r.randbytes(length)
        elif kind == 4:
            del out[at:]
        else:
            out[at] = r.choice((0, 1, 0x7F, 0x80, 0xFF))
    return bytes(out)


def mutate_header(data: bytes, r: Random, size: int = 700) -> bytes:
    """A binary file whose first bytes, which say where everything lies, are damaged; now and then all of it."""
    if r.random() < 0.2:
        return mutate_bytes(data, r)
    return mutate_bytes(data[:size], r) + data[size:]


def dumps(document: Any, r: Random) -> bytes:
    """As JSON, now and then not quite."""
    text = json.dumps(document).encode()
    return mutate_bytes(text, r) if r.random() < 0.1 else text


def mutate_safetensors(data: bytes, r: Random) -> bytes:
    """A safetensors file with a lying header, a damaged one, or damaged tensors."""
    (length,) = struct.unpack("<Q", data[:8])
    header, rest = data[8 : 8 + length], data[8 + length :]
    kind = r.random()
    if kind < 0.5:
        header = dumps(mutate_json(json.loads(header), r), r)
    elif kind < 0.6:
        return mutate_bytes(data, r)
    elif kind < 0.9:
        at, new = r.randrange(len(rest)), r.choice((b"\0", b"\xff", b"\x80\x7f", b"\xff" * 16, r.randbytes(8)))
        rest = (rest[:at] + new + rest[at + len(new) :])[: len(rest)]  # NaN, infinity, huge, tiny: of the same length
    else:
        length = r.choice((0, 1, length - 1, length + 1, 2**20, 2**40, 2**63, 2**64 - 1))
        return struct.pack("<Q", length) + header + rest
    return struct.pack("<Q", len(header)) + header + rest


def mutate_zip(data: bytes, r: Random) -> bytes:
    """A PyTorch archive with a damaged record, a missing or doubled one, or a damaged directory."""
    if r.random() < 0.2:
        return mutate_bytes(data, r)
    source = zipfile.ZipFile(io.BytesIO(data))
    names = source.namelist()
    victim = r.choice([n for n in names if n.endswith("data.pkl")] * 4 + names)
    out = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if r.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", method) as target:
        for name in names:
            content = source.read(name)
            if name == victim:
                kind = r.randrange(8)
                if kind == 0:
                    continue
                content = mutate_pickle(content, r) if name.endswith(".pkl") else mutate_bytes(content, r)
            target.writestr(name, content)
    return out.getvalue()


def mutate_pickle(data: bytes, r: Random) -> bytes:
    """A pickle with another opcode, number or text in it, of the same length where that keeps the rest readable."""
    kind = r.randrange(4)
    if kind == 0:
        return mutate_bytes(data, r)
    out = bytearray(data)
    if kind == 1:  # a small number: a size, a stride, an offset, a storage's length
        found = [i for i, b in enumerate(out) if b == ord("K")]
        if found and (at := r.choice(found) + 1) < len(out):
            out[at] = r.choice((0, 1, 2, 127, 255))
        return bytes(out)
    if kind == 2:  # a global: what is rebuilt, and by what
        for old, new in r.sample(GLOBALS, len(GLOBALS)):
            if old in out:
                return bytes(out).replace(old, new, 1)
    at = r.randrange(len(out))
    out[at] = r.choice(b"(.0125AFGIJKLMNPQRSTUVXYabcdefghijklmnopqrstu}]\x80\x85\x86\x87\x88\x89\x8a\x93\x94\x95")
    return bytes(out)


GLOBALS = (
    (b"ctorch._utils\n_rebuild_tensor_v2\n", b"cos\nsystem\n"),
    (b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n"),
    (b"ctorch._utils\n_rebuild_tensor_v2\n", b"cbuiltins\neval\n"),
    (b"ctorch\nFloatStorage\n", b"ctorch\nByteStorage\n"),
    (b"ctorch\nFloatStorage\n", b"ctorch\nQInt8Storage\n"),
    (b"ctorch\nFloatStorage\n", b"cbuiltins\ndict\n"),
    (b"ccollections\nOrderedDict\n", b"cbuiltins\nlist\n"),
    (b"ccollections\nOrderedDict\n", b"cdatetime\ndatetime\n"),
)


def mutate_text(data: bytes, r: Random) -> bytes:
    """A text of lines (TOML, CSV, JSON lines): a line removed, doubled or moved, a word replaced, or bytes damaged."""
    if r.random() < 0.2:
        return mutate_bytes(data, r)
    lines = data.split(b"\n")
    at = r.randrange(len(lines))
    kind = r.randrange(4)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(at, lines[at])
    elif kind == 2:
        lines.insert(r.randrange(len(lines)), lines.pop(at))
    else:
        words = lines[at].replace(b"=", b" = ").split(b" ")
        value = json.dumps(r.choice(VALUES)).encode()
        words[r.randrange(len(words))] = value
        lines[at] = b" ".join(words)
    return b"\n".join(lines)
