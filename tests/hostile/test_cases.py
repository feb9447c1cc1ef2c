"""Hostile inputs, one by one: each ends in one clear line, in one named failure, or in the right number."""

import csv
import json
import os
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from tests.checkpoints.archives import rezip
from tests.fuzz.cases import put
from tests.hostile.conftest import AT, adapter, both, drawn, run, tensors

FILES = "analyze a.safetensors b.safetensors --out o -q --no-report"
PICKLES = "analyze a.pt b.pt --out o -q --no-report"
SINGLE = "inspect base.safetensors k.safetensors"
ADAPTER = "analyze base ad --out o -q --no-report"
SLOW = "([a-z0-9._]+)+X"  # a regular expression that Python's `re` would not come to an end with


@dataclass(frozen=True)
class Case:
    """An input, the command that is run on it, its exit code and what it says.

    Attributes:
        write: Writes the input to the working directory.
        command: Without the program's name.
        code: The exit code.
        said: A piece of the last line of stderr.
        rows: The norms of the rows that there are then, by name and part, None where it is not known.
    """

    write: Callable[[], object]
    command: str
    code: int
    said: str = ""
    rows: dict[tuple[str, str], float | None] | None = None


def named(name: str) -> Callable[[], None]:
    return lambda: both(lambda side, i: tensors(f"{side}.safetensors", **{name: drawn(8, 6, seed=i)}))


def pickled(*values: object) -> Callable[[], None]:
    def write() -> None:
        for name, value in zip("ab", values, strict=False):
            torch.save(value, f"{name}.pt")

    return write


def archived(change: Callable[[str, bytes], bytes], state: dict[str, torch.Tensor], method: int = zipfile.ZIP_STORED):
    def write() -> None:
        torch.save(state, "a.pt")
        rezip(Path("a.pt"), Path("b.pt"), change, method)

    return write


def lora(config: dict[str, object], *factors: torch.Tensor, at: str = AT, base: dict[str, torch.Tensor] | None = None):
    pair = dict(zip((f"{at}.lora_A.weight", f"{at}.lora_B.weight"), factors, strict=False))
    return lambda: adapter(config, pair or None, base)


def two_experts() -> None:
    """A stack of experts, and a tensor that is called as a part of it would be."""
    both(
        lambda name, i: tensors(
            f"{name}.safetensors",
            **{"moe.w": drawn(2, 5, 20, seed=i), "moe.w[expert 0]": torch.full((5, 20), float(i))},
        )
    )


def adapted_twice() -> None:
    state = {f"{at}.lora_{x}.weight": drawn(*s) for at in (AT, "base_model.model.model.x") for x, s in SHAPES.items()}
    adapter({}, state, {"x.weight": drawn(8, 6)})


SHAPES = {"A": (2, 6), "B": (8, 2)}


def cycle() -> None:
    state: dict[str, object] = {}
    state["model"] = state
    torch.save(state, "a.pt")


def pipe() -> None:
    Path("m").mkdir()
    os.mkfifo("m/model.safetensors.index.json")


def laughs() -> None:
    pairs = (b"h" + bytes([k]) + b"h" + bytes([k]) + b"\x87q" + bytes([k + 1]) for k in range(1, 14))
    data = b"\x80\x02}(X\x03\x00\x00\x00lolq\x01" + b"".join(pairs)
    torch.save({"w": torch.ones(2, 2)}, "t.pt")
    rezip(Path("t.pt"), Path("a.pt"), lambda name, old: data + b"K\x01u." if name.endswith("data.pkl") else old)


def lying(header: dict[str, object], data: Callable[[int], bytes]) -> Callable[[], None]:
    text = json.dumps(header).encode()
    return lambda: both(
        lambda name, i: put(Path(f"{name}.safetensors"), len(text).to_bytes(8, "little") + text + data(i))
    )


def legacy_and_zip() -> None:
    torch.save({"w": torch.ones(3, 3)}, "a.pt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile("a.pt", "a") as archive:
        archive.writestr("x", "y")


def config(text: str) -> Callable[[], None]:
    def write() -> None:
        both(lambda name, i: tensors(f"{name}/model.safetensors", **{"h.0.attn.qkv_proj.weight": drawn(12, 4, seed=i)}))
        put(Path("b/config.json"), text.encode())

    return write


def pipeline_of_itself() -> None:
    tensors("p/model.safetensors", w=drawn(8, 6))
    put(Path("p/model_index.json"), b'{".": ["diffusers", "X"]}')


def kohya() -> None:
    tensors("base.safetensors", **{"unet.a.weight": drawn(8, 6)})
    down, up = drawn(2, 6), drawn(8, 2)
    state = {"lora_unet_a.lora_down.weight": down, "lora_unet_a.lora_up.weight": up, "lora_unet_a.alpha": drawn(3)}
    tensors("k.safetensors", **state)


def diffusers() -> None:
    tensors("base.safetensors", **{"unet.a.weight": drawn(8, 6)})
    state = {"unet.a.lora_A.weight": drawn(2, 6), "unet.a.lora_B.weight": drawn(8, 2)}
    put(Path("k.safetensors"), save(state, metadata={"lora_adapter_metadata": "[]"}))


def described_by(metadata: object) -> Callable[[], None]:
    """A file of diffusers' LoRA whose header describes it so; the library would refuse what is no text."""

    def write() -> None:
        diffusers()
        data = Path("k.safetensors").read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.dumps(json.loads(data[8 : 8 + length]) | {"__metadata__": metadata}).encode()
        put(Path("k.safetensors"), len(header).to_bytes(8, "little") + header + data[8 + length :])

    return write


def ia3(target: str) -> Callable[[], None]:
    import peft  # noqa: F401  (its import takes seconds, which the command is not to be charged with)

    at = "base_model.model.model.layers.0.self_attn.q_proj"

    def write() -> None:
        adapter({}, {f"{at}.ia3_l": drawn(8, 1)}, {"model.layers.0.self_attn.q_proj.weight": drawn(8, 6)})
        about = {"peft_type": "IA3", "target_modules": target, "feedforward_modules": []}
        put(Path("ad/adapter_config.json"), json.dumps(about).encode())

    return write


def damaged_cache() -> None:
    named("w")()
    assert run(f"{FILES} --alignment")[0] == 0
    next(Path("cache").glob("*.safetensors")).write_bytes(save({"x": drawn(2)}))


def damaged_journal() -> None:
    named("w")()
    assert run(FILES)[0] == 0
    Path("o/.deltaw-journal.jsonl").write_bytes(b"\n[]\n")


def tampered() -> None:
    named("w")()
    assert run(FILES)[0] == 0
    about = json.loads(Path("o/analysis.json").read_text())
    Path("o/analysis.json").write_text(json.dumps(about | {"notes": 5}))


def sparse_rows() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that they are in beta
        torch.save({"w": torch.eye(3).to_sparse_csr()}, "a.pt")


def negated() -> torch.Tensor:
    return torch.ones(4, 4, dtype=torch.cfloat).mul(1 + 2j).conj().imag


LLAMA = "base_model.model.model.layers.0.self_attn.q_proj"
HUGE = 1e160 * drawn(2, 6, dtype=torch.float64), 1e160 * drawn(8, 2, dtype=torch.float64)
EXPANDED = {n: torch.full((1,), float(i)).expand(30000, 30000) for i, n in enumerate("ab")}
EXPERTS = {n: torch.full((1,), float(i)).expand(300000, 1, 20) for i, n in enumerate("ab")}
EMPTY = {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}

CASES = {
    # wrong numbers
    "key_collision": Case(two_experts, FILES, 0, rows={("moe.w[expert 0]", ""): 10.0, ("moe.w", "expert 0"): None}),
    "adapter_twice": Case(adapted_twice, ADAPTER, 1, "model.x"),
    "zip_deflated": Case(
        archived(lambda n, b: b, {"w": drawn(8, 6)}, zipfile.ZIP_DEFLATED), PICKLES, 1, "is compressed"
    ),
    "zip_short_record": Case(
        archived(
            lambda n, b: b[:100] if n.endswith("/data/0") else b, {"w": torch.ones(64, 64), "z": torch.ones(9, 9)}
        ),
        PICKLES,
        3,
        "failed: w: its storage holds 100 bytes",
        {("z", ""): 0.0},
    ),
    "neg_bit": Case(lambda: pickled({"w": negated().clone()}, {"w": negated()})(), PICKLES, 0, rows={("w", ""): 0.0}),
    "pickle_1_and_str1": Case(pickled({1: torch.zeros(3, 3), "1": torch.ones(3, 3)}), "inspect a.pt a.pt --json", 0),
    "cache_keys": Case(damaged_cache, f"{FILES} --alignment --fresh", 0, "damaged; computing them again"),
    "journal_list_line": Case(damaged_journal, f"{FILES} --force", 0),
    "journal of others": Case(damaged_journal, FILES, 1, "holds results of other inputs"),
    # what would kill, hang or fill the machine
    "big_endian_segv": Case(
        archived(lambda n, b: b"big" if n.endswith("byteorder") else b, {"w": torch.ones(4, 4)}),
        "inspect a.pt b.pt",
        1,
        "big-endian",
    ),
    "alpha_1e308": Case(lora({"lora_alpha": 1e308}), ADAPTER, 3, "largest entry of the adapter's factor B"),
    "alpha_1e-320": Case(lora({"lora_alpha": 1e-320}), ADAPTER, 3, "largest entry of the adapter's factor B"),
    "f64_1e160": Case(lora({}, *HUGE), ADAPTER, 3, "largest entry of the adapter's factor B"),
    "rank_pattern_redos": Case(
        lora(
            {"rank_pattern": {SLOW: 2}},
            drawn(2, 6),
            drawn(8, 2),
            at=LLAMA,
            base={"model.layers.0.self_attn.q_proj.weight": drawn(8, 6)},
        ),
        "inspect base ad",
        0,
    ),
    "wrapper_cycle": Case(cycle, "inspect a.pt a.pt", 1, "no tensors found"),
    "name_redos": Case(named("_" * 20000), "inspect a.safetensors b.safetensors", 1, "a name of 20,000 characters"),
    "expand_bomb": Case(
        lambda: both(lambda n, i: torch.save({"w": EXPANDED[n]}, f"{n}.pt")), PICKLES, 1, "expanded view"
    ),
    "expand_experts": Case(
        lambda: both(lambda n, i: torch.save({"moe.w": EXPERTS[n]}, f"{n}.pt")), PICKLES, 1, "expanded view"
    ),
    "index_fifo": Case(pipe, "inspect m m", 1, "is not a regular file"),
    "message_38MB": Case(laughs, "inspect a.pt a.pt", 1, "a.pt"),
    "bridge_redos": Case(ia3(SLOW), ADAPTER, 3, "does not target this module"),
    # what was a defect
    "layer_19_digits": Case(named("layers.9999999999999999999.weight"), FILES, 1, "more than 18 digits"),
    "name_5000_digits": Case(named("layers." + "9" * 5000 + ".weight"), FILES, 1, "a name of 5,014 characters"),
    "shape_2_63": Case(
        lying(
            {"w": EMPTY, "v": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}, lambda i: bytes([0, 0, 0, i])
        ),
        FILES,
        1,
        "'w' has no dtype, shape and data_offsets of the right kind",
    ),
    "surrogate_name": Case(
        pickled({"w\ud800": drawn(3, 3)}, {"w\ud800": torch.zeros(3, 3)}), PICKLES, 1, "half a character"
    ),
    "metadata_name": Case(
        pickled({"__metadata__": torch.eye(3)}, {"__metadata__": torch.zeros(3, 3)}), PICKLES, 1, "a reserved name"
    ),
    "sparse_pt": Case(lambda: pickled({"w": torch.eye(3).to_sparse()})(), "inspect a.pt a.pt", 1, "save it dense"),
    "sparse_csr_pt": Case(sparse_rows, "inspect a.pt a.pt", 1, "save it dense"),
    "meta_pt": Case(
        pickled({"w": torch.empty(3, 3, device="meta")}), "inspect a.pt a.pt", 1, "it is on the meta device"
    ),
    "legacy_plus_zip": Case(legacy_and_zip, "inspect a.pt a.pt", 0),
    "config_types 1": Case(config('{"model_type": []}'), "inspect a b --split-fused", 1, "'model_type' is []"),
    "config_types 2": Case(
        config('{"num_attention_heads": 2, "hidden_size": "x"}'), "inspect a b --split-fused", 1, "'hidden_size' is"
    ),
    "config_types 3": Case(config("[" * 100_000), "inspect a b --split-fused", 1, "nested too deeply"),
    "pipeline_self": Case(pipeline_of_itself, "inspect p p", 1, "component '.' is not a plain name"),
    "adapter_types 1": Case(lora({"target_parameters": 5}), "inspect base ad", 1, "'target_parameters' is 5"),
    "adapter_types 2": Case(lora({"lora_alpha": 10**400}), "inspect base ad", 1, "expected a number"),
    "adapter_types 3": Case(
        lora({"use_bdlora": {"nblocks": 2, "target_modules_bd_a": [5]}}), "inspect base ad", 1, "target_modules_bd_a"
    ),
    "adapter_types 4": Case(
        lora({"rank_pattern": {"a{99999999999}": 2}}), "inspect base ad", 1, "not a regular expression"
    ),
    "adapter_types 5": Case(
        lora({"use_mora": True, "rank_pattern": {"x": "y"}}, drawn(6, 6), drawn(8, 6)),
        "inspect base ad",
        1,
        "rank_pattern",
    ),
    "kohya_alpha": Case(kohya, "inspect base.safetensors k.safetensors", 1, "expected one number"),
    "diffusers_meta": Case(diffusers, "inspect base.safetensors k.safetensors", 1, "expected an object"),
    "metadata of another type": Case(described_by([1]), SINGLE, 1, "'__metadata__' is [1]; expected an object"),
    "metadata that is no text": Case(described_by({"lora_adapter_metadata": {}}), SINGLE, 1, "expected a text"),
    "metadata of others": Case(described_by({"a": 5}), SINGLE, 0),
    "bridge_regex": Case(ia3("["), ADAPTER, 1, "is not a regular expression"),
    "format_twice": Case(named("w"), f"{FILES} --format csv,csv", 0),
    "results_tampered": Case(tampered, "report o --no-figures", 1, "'notes' is 5"),
    "manifest_bigint": Case(
        lambda: put(Path("m.toml"), b'[[runs]]\nname="a"\n[runs.scores]\nlearning=' + b"9" * 400),
        "compare m.toml",
        1,
        "not valid TOML",
    ),
    "manifest of 5,000 digits": Case(
        lambda: put(Path("m.toml"), b'[[runs]]\nname="a"\nseed=' + b"9" * 5000), "compare m.toml", 1, "not valid TOML"
    ),
}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", CASES)
def test_it_ends_in_one_line_or_in_the_right_number(name: str):
    case = CASES[name]
    case.write()
    code, shown, said = run(case.command)
    assert (code, case.said in said) == (case.code, True), said
    if case.code == 1:
        assert said.startswith("Error: ")
    if case.command.endswith("--json"):
        assert [s["reason"] for s in json.loads(shown)["skipped"]] == ["unsupported: a name twice"]
    if case.rows is not None:
        with Path("o/layers.csv").open() as file:
            rows = {(r["name"], r["part"]): float(r["fro_norm"]) for r in csv.DictReader(file)}
        for key, norm in case.rows.items():
            assert key in rows
            assert norm is None or rows[key] == pytest.approx(norm)
