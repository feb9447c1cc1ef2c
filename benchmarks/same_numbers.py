"""Do two revisions of the code give the same numbers, byte for byte?

    python -m benchmarks.same_numbers BEFORE [AFTER] [--no-demo] [--renamed forgetting=retention …]

Both are git revisions; AFTER defaults to HEAD. Each is checked out in a temporary directory and measures the same
inputs in a process of its own, with one thread: pico checkpoints in every format, pico adapters of every method of peft
that fits them, the demo's pair, and a fixed comparison. Compared are the cells of `layers.csv` (`seconds` aside),
`claims.csv` and `contrasts.csv`, as texts. Columns that only one revision has are named. Exit code 1 where a cell
differs.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.revisions import IMPORT, package_of

TABLES = ("layers.csv", "claims.csv", "contrasts.csv")
IGNORED = frozenset({"seconds"})
SHOWN = 10  # differences of a table

# Run by either revision.
MEASURE = """
from pathlib import Path

import torch
import deltaw
assert deltaw.__file__.startswith({package!r}), deltaw.__file__
torch.set_num_threads(1)
inputs, out = Path({inputs!r}), Path({out!r})
for pair in sorted(p for p in inputs.iterdir() if (p / "pair.txt").exists()):
    base, ft = (pair / "pair.txt").read_text().splitlines()
    base, aligned = None if base == "none" else base, "aligned" in pair.name
    try:
        found = deltaw.analyze(base, ft, device="cpu", jobs=1, alignment=aligned)
    except deltaw.DeltaWError as e:
        (out / pair.name).mkdir()
        (out / pair.name / "refused.txt").write_text(type(e).__name__)
        continue
    found.save(out / pair.name, formats=("csv",))
comparison = deltaw.compare(inputs / "runs.toml", out=out / "compared", jobs=1, device="cpu")
comparison.save(out / "compared", force=True)
"""


def pico(seed: int = 0, dtype: str = "float32") -> dict[str, torch.Tensor]:
    """Two layers of a Llama of hidden size 16."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (40, 16), "model.norm.weight": (16,), "lm_head.weight": (40, 16)}
    for layer in range(2):
        where = f"model.layers.{layer}"
        shapes |= {f"{where}.self_attn.{x}_proj.weight": (16, 16) for x in "qkvo"}
        shapes |= {f"{where}.mlp.{x}_proj.weight": (24, 16) for x in ("gate", "up")}
        shapes |= {f"{where}.mlp.down_proj.weight": (16, 24), f"{where}.input_layernorm.weight": (16,)}
    return {name: (0.1 * torch.randn(shape, generator=g)).to(getattr(torch, dtype)) for name, shape in shapes.items()}


def changed(state: dict[str, torch.Tensor], size: float, seed: int = 1) -> dict[str, torch.Tensor]:
    """A full update of that relative size."""
    g = torch.Generator().manual_seed(seed)
    return {
        name: (w.double() + size * w.double().std() * torch.randn(w.shape, generator=g, dtype=torch.float64)).to(
            w.dtype
        )
        for name, w in state.items()
    }


def write_formats(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Pairs of full checkpoints: name, base, fine-tuned."""
    from safetensors.torch import save_file

    for dtype in ("float32", "bfloat16", "float16"):
        base = pico(dtype=dtype)
        for side, state in (("base", base), ("ft", changed(base, 0.02))):
            place = folder / dtype / side
            place.mkdir(parents=True)
            save_file(state, place / "model.safetensors")
            torch.save(state, place.parent / f"{side}.bin")
            torch.save({"state_dict": state, "epoch": 3}, place.parent / f"{side}.ckpt")
            shards = folder / f"{dtype}-sharded" / side
            shards.mkdir(parents=True)
            write_shards(state, shards)
        for kind, a, b in (
            ("safetensors", "base", "ft"),
            ("bin", "base.bin", "ft.bin"),
            ("ckpt", "base.ckpt", "ft.ckpt"),
            ("unchanged", "base", "base.bin"),
        ):
            yield f"{dtype}-{kind}", str(folder / dtype / a), str(folder / dtype / b)
        yield f"{dtype}-sharded", str(folder / f"{dtype}-sharded" / "base"), str(folder / f"{dtype}-sharded" / "ft")
    yield "float32-aligned", str(folder / "float32" / "base"), str(folder / "float32" / "ft")


def write_shards(state: dict[str, torch.Tensor], folder: Path) -> None:
    """A checkpoint in two files and an index."""
    import json

    from safetensors.torch import save_file

    names = list(state)
    where = {name: f"model-{1 + i % 2:05d}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(where.values())):
        save_file({name: state[name] for name in names if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def write_adapters(folder: Path) -> Iterator[tuple[str, str, str]]:
    """An adapter of every method that peft can put on a pico Llama, over one base."""
    import peft
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=40, tie_word_embeddings=False,
    )  # fmt: skip
    base = folder / "llama"
    LlamaForCausalLM(config).save_pretrained(base)
    targets = ["q_proj", "v_proj", "down_proj"]
    made = {
        "lora": lambda: peft.LoraConfig(r=4, target_modules=targets),
        "rslora": lambda: peft.LoraConfig(r=4, use_rslora=True, target_modules=targets),
        "dora": lambda: peft.LoraConfig(r=4, use_dora=True, target_modules=targets),
        "saved": lambda: peft.LoraConfig(r=4, target_modules=targets, modules_to_save=["lm_head"]),
    }
    for kind, method in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items():
        if kind.value != "LORA":
            made[kind.value.lower()] = lambda method=method: method(target_modules=targets)
    for name, make in made.items():
        torch.manual_seed(1)
        try:
            model = peft.get_peft_model(LlamaForCausalLM.from_pretrained(base), make())
        except Exception as e:  # noqa: BLE001  many methods do not fit such a model: they are named and left out
            print(f"  {name}: not made ({type(e).__name__})")
            continue
        for tensor in (p for n, p in model.named_parameters() if p.requires_grad):
            tensor.data += 0.05 * torch.randn_like(tensor)
        model.save_pretrained(folder / name)
        yield f"adapter-{name}", str(base), str(folder / name)
    yield "adapter-alone", "none", str(folder / "lora")


def write_comparison(folder: Path) -> None:
    """Two groups of three seeds each, with scores."""
    from safetensors.torch import save_file

    base = pico()
    save_file(base, folder / "base.safetensors")
    lines = ['title = "fixed"', 'base = "base.safetensors"']
    for group, size, learning in (("full", 0.05, 0.3), ("small", 0.01, 0.2)):
        for seed in range(3):
            name = f"{group}-s{seed}"
            save_file(changed(base, size, seed=10 + seed), folder / f"{name}.safetensors")
            method = "full" if group == "full" else "lora"
            lines += [
                *("[[runs]]", f'name = "{name}"', f'checkpoint = "{name}.safetensors"', f'group = "{group}"'),
                *(f'method = "{method}"', f"seed = {seed}", "[runs.scores]"),
                *(f"learning = {learning + 0.01 * seed}", f"forgetting = {0.9 - learning - 0.01 * seed}"),
            ]
    (folder / "runs.toml").write_text("\n".join(lines) + "\n")


def write_inputs(folder: Path, demo: bool) -> None:
    """Everything that is measured, once for both revisions."""
    pairs = [*write_formats(folder / "formats"), *write_adapters(folder / "adapters")]
    if demo:
        from deltaw.cli.demo import BASE, FT, find

        pairs.append(("demo", str(find(*BASE)), str(find(*FT))))
    for name, base, ft in pairs:
        (folder / name).mkdir()
        (folder / name / "pair.txt").write_text(f"{base}\n{ft}\n")
    write_comparison(folder)


def measure(revision: str, inputs: Path, out: Path) -> Path:
    """The tables of one revision."""
    out.mkdir()
    with package_of(revision, out.parent) as package:
        code = (IMPORT + MEASURE).format(package=str(package), inputs=str(inputs), out=str(out))
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        cache = {"DELTAW_CACHE": "off"}
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, env={**os.environ, **threads, **cache})
    return out


def read(path: Path, renamed: dict[str, str]) -> tuple[list[str], list[dict[str, str]]]:
    """The columns of a table, and its rows as texts."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = [{renamed.get(c, c): renamed.get(v, v) for c, v in row.items()} for row in reader]
        return [renamed.get(c, c) for c in reader.fieldnames or ()], rows


def differences(before: Path, after: Path, renamed: dict[str, str]) -> list[str]:
    """What differs between two tables: rows, cells, and columns of one side only."""
    old_columns, old = read(before, renamed)
    new_columns, new = read(after, {})
    out = [f"only before: {c}" for c in old_columns if c not in new_columns]
    out += [f"only after: {c}" for c in new_columns if c not in old_columns]
    if len(old) != len(new):
        return [*out, f"! {len(old)} rows before, {len(new)} after"]
    for i, (a, b) in enumerate(zip(old, new, strict=True)):
        name = a.get("name") or a.get("claim") or a.get("metric")
        columns = [c for c in old_columns if c in b and c not in IGNORED and a[c] != b[c]]
        out += [f"! row {i} ({name}), {c}: {a[c]} → {b[c]}" for c in columns]
    return out


def main() -> None:
    """Measure by both revisions and say what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after", nargs="?", default="HEAD")
    parser.add_argument("--no-demo", action="store_true", help="leave the demo's pair out")
    parser.add_argument("--renamed", nargs="*", default=[], metavar="OLD=NEW", help="columns and words")
    given = parser.parse_args()
    renamed = dict(pair.split("=", 1) for pair in given.renamed)
    same = different = 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        inputs = work / "inputs"
        inputs.mkdir()
        write_inputs(inputs, demo=not given.no_demo)
        before, after = (
            measure(r, inputs, work / side) for side, r in (("before", given.before), ("after", given.after))
        )
        for place in sorted({p.name for p in (*before.iterdir(), *after.iterdir())}):
            for table in (*TABLES, "refused.txt"):
                a, b = before / place / table, after / place / table
                if not a.exists() and not b.exists():
                    continue
                if not (a.exists() and b.exists()):
                    found = [f"! {table} is there {'before' if a.exists() else 'after'} only"]
                else:
                    found = differences(a, b, renamed)
                wrong = [line for line in found if line.startswith("!")]
                same, different = (same, different + 1) if wrong else (same + 1, different)
                if found:
                    print(f"{place}/{table}: {len(wrong)} cells differ")
                    print("".join(f"    {line}\n" for line in found[:SHOWN]), end="")
    print(f"{same} tables are the same, {different} differ")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
