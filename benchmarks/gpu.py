"""What one GPU does, stage by stage and on a 7B-shaped pair: `python -m benchmarks.gpu`.

    --only WORD ...   only the sections whose name has one of these words
    --layers N        layers of the pair; default 32, a whole Llama 7B
    --folder DIR      where the pair is written (27 GB for 32 layers); default a temporary directory
    --runs N          runs of each stage; default 3

Stages are timed by CUDA events after one warm-up, the pair by the wall clock with the device synchronised. The pair is
written once per kind of update; reading it to the device and nothing else is a row of its own, so that what the
analysis takes beyond reading can be told.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.bench import machine, row
from benchmarks.pairs import LLAMA_7B, RELATIVE, merged, shapes, update

VOCABULARY_7B = 32000
SQUARE = LLAMA_7B[0]
Call = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print(f"{machine()}; medians of {options.runs}\n", flush=True)
    for name, section in SECTIONS.items():
        if not options.only or any(word in name for word in options.only):
            for title, header, lines in section(options):
                print(table(title, header, lines), flush=True)


Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table with its title."""
    return "\n".join([f"### {title}\n", row(header), "|---|" + "---:|" * (len(header) - 1), *map(row, lines)]) + "\n"


def timed(call: Call, runs: int) -> float:
    """Median milliseconds on the device and in the host's code around it, after one warm-up."""
    call()
    found = []
    for _ in range(runs):
        torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - started) * 1e3)
    return statistics.median(found)


def once(call: Call) -> float:
    """Milliseconds of a single call, for what takes many seconds."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1e3


def at_once(calls: Sequence[Call], runs: int) -> float:
    """Median milliseconds a call where each has a thread and a stream of its own."""

    def on_stream(call: Call) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            call()
            torch.cuda.current_stream().synchronize()

    with ThreadPoolExecutor(len(calls)) as pool:
        return timed(lambda: list(pool.map(on_stream, calls)), runs) / len(calls)


def gaussian(m: int, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A random matrix on the device."""
    return torch.randn(m, n, dtype=dtype, device="cuda")


def ceilings(options: argparse.Namespace) -> Iterator[Table]:
    """What this card can do at most."""
    lines = []
    for dtype in (torch.float64, torch.float32):
        a, b = gaussian(8192, 8192, dtype), gaussian(8192, 8192, dtype)
        ms = timed(lambda a=a, b=b: a @ b, options.runs)
        lines.append([f"{str(dtype).removeprefix('torch.')} product, 8192³", f"{2 * 8192**3 / ms / 1e9:.1f} TFLOP/s"])
    x = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    ms = timed(lambda: y.copy_(x), options.runs)
    lines.append(["copy on the device, read and written", f"{2 * x.numel() / ms / 1e9:.2f} TB/s"])
    for label, pinned in (("pageable", False), ("pinned", True)):
        host = torch.ones(1 << 28, dtype=torch.uint8, pin_memory=pinned)
        ms = timed(lambda h=host: x[: h.numel()].copy_(h), options.runs)
        lines.append([f"copy to the device, {label}", f"{host.numel() / ms / 1e6:.1f} GB/s"])
    yield "Ceilings", ["what", "measured"], lines


def eigenvalue_drivers(options: argparse.Namespace) -> Iterator[Table]:
    """All singular values of a square matrix: from the Gram matrix, and by cuSOLVER's drivers."""
    from deltaw.spectra.lapack import eigenvalues, gram

    lines = []
    for n in (256, 512, 1024, 2048, 4096):
        x = gaussian(n, n, torch.float32)
        square = gram(x)
        calls: dict[str, Call] = {
            "gram": lambda x=x: gram(x),
            "eigvalsh": lambda s=square: eigenvalues(s),
        }
        cells = [f"{timed(call, options.runs):.1f}" for call in calls.values()]
        cells.extend(f"{at_once([lambda s=square: eigenvalues(s)] * n, options.runs):.1f}" for n in (2, 4))
        cells.append(f"{timed(lambda s=square: torch.linalg.eigvalsh(s.float()), options.runs):.1f}")
        host = square.cpu()
        host = host.triu() + host.triu(1).T
        cells.append(f"{once(lambda h=host: torch.linalg.eigvalsh(h)):.1f}")
        for driver, dtype in ((None, torch.float32), ("gesvd", torch.float64), ("gesvdj", torch.float64)):
            if n > 2048 and driver:
                cells.append("–")
                continue
            wide = x.to(dtype)
            cells.append(f"{once(lambda w=wide, d=driver: torch.linalg.svdvals(w, driver=d)):.1f}")
        lines.append([str(n), *cells])
    header = ["k", "Gram", "eigvalsh", "2 streams", "4 streams", "float32", "CPU", "svdvals float32", "gesvd", "gesvdj"]
    yield "All singular values of a k×k matrix, milliseconds", header, lines


def stacks(options: argparse.Namespace) -> Iterator[Table]:
    """64 small matrices one by one and in one call."""
    from deltaw.spectra import singular_values, singular_values_batched

    lines = []
    for k in (16, 32, 64, 128, 256, 384, 512):
        xs = torch.randn(64 if k < 256 else 16, k, k, device="cuda")
        one = timed(lambda xs=xs: [singular_values(x) for x in xs], options.runs) / len(xs)
        many = timed(lambda xs=xs: singular_values_batched(xs), options.runs) / len(xs)
        lines.append([str(k), f"{one:.2f}", f"{many:.2f}", f"{one / many:.2f}"])
    yield "Stacks of k×k matrices, milliseconds each", ["k", "one by one", "one call", "ratio"], lines


def entry_pass(options: argparse.Namespace) -> Iterator[Table]:
    """The pass over the entries of a bf16 pair, which are read to the CPU's memory."""
    from deltaw.delta.sums import sweep

    lines = []
    W0, W = (side.cpu() for side in merged(*reversed(LLAMA_7B), None, torch.Generator("cuda").manual_seed(0)))
    for power in (20, 21, 22, 23, 24, 25):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        ms = timed(lambda p=power: sweep(W0, W, device="cuda", block=1 << p), options.runs)
        peak = torch.cuda.max_memory_allocated() - held
        lines.append([f"2^{power}", f"{ms:.1f}", f"{peak / 1e6:.0f}"])
    header = ["block", "milliseconds", "peak MB"]
    yield "The pass over 11008×4096, by the number of entries of a block", header, lines


def routes(options: argparse.Namespace) -> Iterator[Table]:
    """Each way to a spectrum, by shape, beside svdvals."""
    from deltaw.delta.sums import sweep
    from deltaw.spectra import Noise, spectrum

    lines = []
    for m, n in ((1024, 1024), (SQUARE, SQUARE), tuple(reversed(LLAMA_7B)), (VOCABULARY_7B, SQUARE)):
        cells: list[float] = []
        loops: list[float] = []
        for rank, mode in ((None, "exact"), (None, "fast"), (16, "exact")):
            g = torch.Generator("cuda").manual_seed(0)
            delta, sums = sweep(*(side.cpu() for side in merged(m, n, rank, g)), device="cuda")
            assert delta is not None
            noise = Noise(
                float(sums.noise_row.sum()), sums.noise_row, sums.noise_col, sums.noise_steps, sums.noise_counts
            )
            energy = float(sums.delta_row_sq.sum())

            def call(x: Tensor = delta, mode: str = mode, noise: Noise = noise, energy: float = energy) -> object:
                g = torch.Generator("cuda").manual_seed(0)
                return spectrum(x, mode=mode, energy=energy, noise=noise, generator=g)

            cells.append(timed(call, options.runs))
            if not loops:
                upcast = [delta.to(dtype) for dtype in (torch.float32, torch.float64)]
                loops = [once(lambda x=x: torch.linalg.svdvals(x)) for x in upcast]
        ratios = [" and ".join(f"{loop / c:.1f}×" for loop in loops) for c in cells]
        found = [f"{c:.1f} ({ratio})" for c, ratio in zip(cells, ratios, strict=True)]
        lines.append([f"{m}×{n}", *(f"{loop:.0f}" for loop in loops), *found])
    header = ["shape", "svdvals float32", "svdvals float64", "exact", "fast", "merged r = 16"]
    yield "One matrix, milliseconds (and how many times faster than svdvals in float32 and in float64)", header, lines


def pairs(options: argparse.Namespace) -> Iterator[Table]:
    """A 7B-shaped bf16 pair as files, whole."""
    header = ["work", "seconds", "beyond reading", "GPU busy", "peak MB (reserved)"]
    largest = VOCABULARY_7B * SQUARE * 4 / 1e6
    for rank, modes in ((None, ("fast", "exact")), (16, ("exact",))):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            base, tuned = write_7b(Path(folder), options.layers, rank)
            seconds, _, _ = measured(lambda b=base, t=tuned: read(b, t))
            lines = [["reading to the device", f"{seconds:.1f}", "", "", ""]]
            lines.extend([mode, *analysed(base, tuned, mode, beyond=seconds)] for mode in modes)
        kind = "full update" if rank is None else f"merged LoRA r = {rank}"
        title = f"7B-shaped bf16 pair, {options.layers} layers, {kind}; largest matrix in float32 {largest:.0f} MB"
        yield title, header, lines


def analysed(base: Path, tuned: Path, mode: str, *, beyond: float) -> list[str]:
    """One row: seconds, seconds beyond reading, how busy the GPU was, its peak memory."""
    import deltaw

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    seconds, busy, result = measured(lambda: deltaw.analyze(base, tuned, mode=mode, device="cuda", cache=False))
    assert isinstance(result, deltaw.Analysis)
    assert not result.failed, result.failed[:3]
    methods = result.to_pandas()["method"].value_counts().to_dict()
    print(f"{mode}: {methods}", flush=True)
    peak = f"{torch.cuda.max_memory_allocated() / 1e6:.0f} ({torch.cuda.max_memory_reserved() / 1e6:.0f})"
    return [f"{seconds:.1f}", f"{seconds - beyond:.1f}", f"{busy:.0%}", peak]


def measured(call: Call) -> tuple[float, float, object]:
    """Seconds of one call, the share of them in which the GPU was busy, and what it returned."""
    with busy_share() as share:
        torch.cuda.synchronize()
        started = time.perf_counter()
        found = call()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return seconds, share[0], found


@contextmanager
def busy_share() -> Iterator[list[float]]:
    """The driver's own figure of how busy the GPU is, sampled ten times a second; its mean is there at the end."""
    import pynvml

    pynvml.nvmlInit()
    card = pynvml.nvmlDeviceGetHandleByIndex(0)
    samples: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            samples.append(pynvml.nvmlDeviceGetUtilizationRates(card).gpu)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    out = [0.0]
    try:
        yield out
    finally:
        done.set()
        watcher.join()
        out[0] = statistics.mean(samples) / 100 if samples else 0.0


def read(base: Path, tuned: Path) -> None:
    """Every tensor of both sides to the device, as a plain loop would."""
    from safetensors import safe_open

    for folder in (base, tuned):
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  (a safetensors file is no mapping)
                    file.get_tensor(name).to("cuda")


def write_7b(folder: Path, layers: int, rank: int | None) -> tuple[Path, Path]:
    """A sharded Llama-7B-shaped bf16 pair, generated on the device; a LoRA leaves embedding and head as they are."""
    g = torch.Generator("cuda").manual_seed(0)
    paths = folder / "base", folder / "tuned"
    maps: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for path in paths:
        path.mkdir(parents=True)
    outer = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (VOCABULARY_7B, SQUARE))
    for shard in range(layers + 1):
        block = (
            {f"model.layers.{shard}.{k}.weight": s for k, s in shapes(*LLAMA_7B).items()} if shard < layers else outer
        )
        sides: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        for name, (m, n) in block.items():
            W0 = (torch.randn(m, n, generator=g, device="cuda") * 0.02).bfloat16()
            W = W0
            if rank is None or block is not outer:
                d = update(m, n, rank, g)
                W = (W0.float() + d * (RELATIVE * torch.linalg.vector_norm(W0.float()))).bfloat16()
            sides[0][name], sides[1][name] = W0.cpu(), W.cpu()
        file = f"model-{shard + 1:05d}-of-{layers + 1:05d}.safetensors"
        for path, side, names in zip(paths, sides, maps, strict=True):
            save_file(side, path / file)
            names.update(dict.fromkeys(side, file))
    for path, names in zip(paths, maps, strict=True):
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    torch.cuda.empty_cache()
    return paths


SECTIONS: dict[str, Callable[[argparse.Namespace], Iterator[Table]]] = {
    "ceilings": ceilings,
    "drivers": eigenvalue_drivers,
    "stacks": stacks,
    "pass": entry_pass,
    "routes": routes,
    "pairs": pairs,
}

if __name__ == "__main__":
    main()
