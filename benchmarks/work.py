"""One measurement in a process of its own: `python benchmarks/work.py TASK ARGUMENT ...` prints one JSON line.

`seconds` is the wall time of the work without imports, `cpu` the CPU time of all its threads, `peak_mb` the largest
resident memory above what the imports took. A task imports what it measures, so that the interpreter of the peers can
run this file too.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

Work = Callable[[], object]

WARM_UP = 1200  # a matrix on which every library takes the same way as on a large one


def loop(base: str, tuned: str) -> Work:
    """What one would write: load both, subtract in float32, `svdvals`."""
    from safetensors.torch import load_file

    def work() -> None:
        old, new = load_file(_file(base)), load_file(_file(tuned))
        for name, w in new.items():
            if w.ndim == 2 and name in old:
                torch.linalg.svdvals(w.float() - old[name].float())

    return work


def deltaw(base: str, tuned: str, mode: str = "exact") -> Work:
    import numba  # noqa: F401 (what `analyze` loads when it is first called)
    import psutil  # noqa: F401
    import threadpoolctl  # noqa: F401

    import deltaw
    import deltaw.measurement.measure  # noqa: F401

    analyze = deltaw.analyze  # loads it
    return lambda: analyze(base, tuned, mode=mode)


def read(base: str, tuned: str) -> Work:
    """Every byte of both sides, as deltaw reads them."""
    from deltaw.checkpoints import open_checkpoint

    def work() -> None:
        for source in (base, tuned):
            for handle in open_checkpoint(source).tensors.values():
                handle.read().clone()

    return work


def modeldelta(base: str, tuned: str) -> Work:
    from modeldelta.core.weight_diff import compare_models
    from modeldelta.utils.model_loader import get_tensor_map

    return lambda: compare_models(get_tensor_map(base), get_tensor_map(tuned))


def weightwatcher(base: str, tuned: str) -> Work:
    import weightwatcher as ww
    from safetensors.torch import load_file

    def module(path: str) -> torch.nn.Module:
        tensors = {n: w for n, w in load_file(_file(path)).items() if w.ndim == 2}
        layers = torch.nn.ModuleDict()
        for name, w in tensors.items():
            linear = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
            linear.weight.data = w.float()
            layers[name.removesuffix(".weight").replace(".", "_")] = linear
        return layers

    return lambda: ww.WeightWatcher(model=module(tuned), base_model=module(base)).analyze()


def matrix(method: str, m: str, n: str, rank: str = "full", device: str = "cpu") -> Work:
    """One matrix as it is stored: a full update, or a merged LoRA."""
    rows, cols = int(m), int(n)
    least = min(rows, WARM_UP), min(cols, WARM_UP)
    _matrix(method, *least, rank, device)()  # what a library does at its first call belongs to no matrix
    return _matrix(method, rows, cols, rank, device)


def _matrix(method: str, m: int, n: int, rank: str, device: str) -> Work:
    from benchmarks.pairs import merged
    from deltaw.delta.sums import sweep
    from deltaw.spectra import Noise, singular_values, spectrum

    g = torch.Generator(device).manual_seed(0)
    delta, sums = sweep(*(side.cpu() for side in merged(m, n, None if rank == "full" else int(rank), g)), device=device)
    assert delta is not None
    noise = Noise(float(sums.noise_row.sum()), sums.noise_row, sums.noise_col, sums.noise_steps, sums.noise_counts)
    energy = float(sums.delta_row_sq.sum())
    ways: dict[str, Work] = {
        "svdvals": lambda: torch.linalg.svdvals(delta).cpu(),
        "full": lambda: singular_values(delta),
        "exact": lambda: spectrum(delta, energy=energy, noise=noise, generator=g),
        "fast": lambda: spectrum(delta, mode="fast", energy=energy, noise=noise, generator=g),
    }
    return ways[method]


def stage(name: str, m: str, n: str) -> Work:
    """A stage of the exact analysis of a full update, with one thread, as `analyze` runs it."""
    from threadpoolctl import threadpool_limits

    from benchmarks.pairs import merged
    from deltaw.delta.sums import sweep
    from deltaw.spectra.lapack import eigenvalues, gram

    torch.set_num_threads(1)
    threadpool_limits(1, user_api="blas")
    W0, W = merged(int(m), int(n), None, torch.Generator().manual_seed(0))
    delta, _ = sweep(W0, W)
    assert delta is not None
    square = gram(delta)
    eigenvalues(square)  # loads what the library keeps
    ways: dict[str, Work] = {
        "entries": lambda: sweep(W0, W),
        "gram": lambda: gram(delta),
        "eigenvalues": lambda: eigenvalues(square),
    }
    return ways[name]


def adapter(rank: str, layers: str) -> Work:
    """The factored route on the shapes of a 7B Llama."""
    from benchmarks.pairs import LLAMA_7B, shapes
    from deltaw.spectra import spectrum
    from deltaw.types import Factors

    g, r = torch.Generator().manual_seed(0), int(rank)
    one = [
        Factors(torch.randn(m, r, generator=g), torch.randn(r, n, generator=g)) for m, n in shapes(*LLAMA_7B).values()
    ]

    def work() -> None:
        for _ in range(int(layers)):
            for factors in one:
                spectrum(factors)

    return work


def pair_on_gpu(mode: str, layers: str) -> Work:
    """Every matrix of a 7B-shaped full update, generated on the device; only the spectra are timed."""
    from benchmarks.pairs import LLAMA_7B, shapes, update
    from deltaw.spectra import singular_values, spectrum

    g = torch.Generator("cuda").manual_seed(0)
    one = [update(m, n, None, g) for m, n in shapes(*LLAMA_7B).values()]
    singular_values(torch.randn(300, 300, device="cuda"))

    def work() -> None:
        for _ in range(int(layers)):
            for delta in one:
                if mode == "svdvals":
                    torch.linalg.svdvals(delta).cpu()
                else:
                    spectrum(delta, mode=mode, generator=g)

    return work


def _file(path: str) -> str:
    return str(Path(path) / "model.safetensors")


def _memory_mb(field: str) -> float:
    """`VmRSS` or `VmHWM` of this process: unlike getrusage's, the latter does not count what the parent had."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines[field].split()[0]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


TASKS = {f.__name__: f for f in (loop, deltaw, read, modeldelta, weightwatcher, matrix, stage, adapter, pair_on_gpu)}


def main(name: str, *arguments: str) -> None:
    # Also where the interpreter is not ours; and not this folder, whose `coverage` is not the package of that name.
    sys.path[0] = str(Path(__file__).parents[1])
    work = TASKS[name](*arguments)
    resident = _memory_mb("VmRSS")
    start, cpu = time.perf_counter(), time.process_time()
    work()
    spent = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    print(json.dumps(spent | {"peak_mb": max(0.0, _memory_mb("VmHWM") - resident)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
