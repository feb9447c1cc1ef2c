"""Every command and mode, killed at a random moment and run again: nothing is lost, nothing is left, nothing differs.

Each command runs once undisturbed: what it prints and writes is what every later run has to give. Then it is started
again in a copy of the inputs, killed by SIGKILL, SIGTERM or Ctrl-C (sent once, twice or three times) at a moment drawn
from the time that it takes, and run again to its end.
"""

import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from tests.conftest import changed, pico_state, save_single

LONGEST = 600  # seconds that a run may take
# What tells the time, and nothing else, in what a run writes and prints.
VARYING = re.compile(
    rb'"seconds":\s*[-\d.e]+|\d+(?:\.\d+)?(?:\s|&nbsp;)*(?:s|ms|min)\b'
    rb"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?(?:\+00:00| UTC)?"
)
STARTED = (  # from the dot on the handlers are the program's: the interpreter's own start is not
    "import os; from deltaw.cli import interrupt, run; interrupt.install(); os.write(2, b'.'); run()"
)
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "analyze": ("analyze", "base", "full", "--out", "out"),
    "analyze --mode fast": ("analyze", "base", "full", "--mode", "fast", "--no-report", "--out", "out"),
    "analyze --alignment": ("analyze", "base", "full", "--alignment", "--no-report", "--out", "out"),
    "analyze an adapter": ("analyze", "base", "adapter", "--no-report", "--out", "out"),
    "analyze a quantised side": ("analyze", "base", "fp8", "--no-report", "--out", "out"),
    "inspect": ("inspect", "base", "full", "--json"),
    "compare": ("compare", "runs.toml", "--no-report", "--out", "out"),
    "extract": ("extract", "base", "full", "--rank", "4", "--out", "out"),
    "resize": ("resize", "adapter", "--rank", "2", "--out", "out"),
    "edit": ("edit", "base", "full", "--keep-rank", "3", "--out", "out"),
    "verify": ("verify", "base", "adapter", "full", "--json"),
    "verify --predict": ("verify", "base", "adapter", "--predict", "int4-g32", "--json"),
    "report": ("report", "results"),
    "survey": ("survey", "base", "adapter", "full", "fp8", "--no-report", "--out", "out"),
}


class Moment(NamedTuple):
    """When a run is killed: after this share of its time, by this signal, sent so many times."""

    share: float
    number: signal.Signals
    times: int


@dataclass(frozen=True)
class Ended:
    """What a run came to.

    Attributes:
        code: Its exit code.
        stdout: What it printed, without what tells the time.
        stderr: What it said.
        files: What it left, by path, without what tells the time.
        seconds: How long it took.
    """

    code: int
    stdout: bytes
    stderr: str
    files: Mapping[str, bytes] = field(repr=False)
    seconds: float = 0.0


class FoundError(AssertionError):
    """What must not happen."""


def write_inputs(folder: Path, *, results: bool = True) -> None:
    """A base of some thirty matrices, a full fine-tune, an adapter, a quantised copy, a manifest, and saved results."""
    state = pico_state(layers=4)
    save_single(state, folder / "base")
    save_single(changed(state), folder / "full")
    coded = {}
    for name, w in state.items():
        coded[name] = w.to(torch.float8_e4m3fn) if w.ndim == 2 and "layers" in name else w
        if coded[name] is not w:
            coded[f"{name}_scale_inv"] = torch.ones(1, 1)
    save_single(coded, folder / "fp8")
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    (folder / "fp8" / "config.json").write_text(json.dumps(config))
    g = torch.Generator().manual_seed(3)
    factors = {}
    for name, w in state.items():
        if "self_attn" in name:
            at = f"base_model.model.{name.removesuffix('.weight')}"
            factors[f"{at}.lora_A.weight"] = torch.randn(4, w.shape[1], generator=g)
            factors[f"{at}.lora_B.weight"] = torch.randn(w.shape[0], 4, generator=g)
    save_single(factors, folder / "adapter")
    (folder / "adapter" / "model.safetensors").rename(folder / "adapter" / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(about))
    runs = "".join(f'[[runs]]\nname = "{n}"\ncheckpoint = "{n}"\n' for n in ("full", "adapter"))
    (folder / "runs.toml").write_text(f'base = "base"\n{runs}')
    if results:
        assert run(("analyze", "base", "full", "--out", "results"), folder).code == 0


def run(arguments: tuple[str, ...], folder: Path, moment: Moment | None = None, lasting: float = 0.0) -> Ended:
    """Run a command in a folder, and kill it if asked to.

    Raises:
        FoundError: It does not end, prints a traceback, or ends by a signal with something else than its one line.
    """
    before = {path: path.stat().st_mtime_ns for path in files_of(folder)}
    environment = os.environ | {"DELTAW_CACHE": str(folder / "cache"), "COLUMNS": "100"}
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", STARTED, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    process.stderr.read(1)
    try:
        if moment is not None:
            time.sleep(moment.share * lasting)
            for _ in range(moment.times):
                process.send_signal(moment.number)
        stdout, stderr = process.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired as e:
        process.kill()
        raise FoundError(f"{arguments}: does not end") from e
    seconds = time.monotonic() - started
    said = stderr.decode(errors="replace")
    killed = moment is not None and process.returncode == 128 + moment.number
    if "Traceback" in said or "defect of deltaw" in said:
        raise FoundError(f"{arguments} {moment}: {said[-2000:]}")
    if killed and said.count("the same command again") != 1:
        raise FoundError(f"{arguments} {moment}: {said[-2000:]}")
    written = {
        path.relative_to(folder).as_posix(): VARYING.sub(b"", path.read_bytes())
        for path in files_of(folder)
        if "cache" not in path.relative_to(folder).parts and before.get(path) != path.stat().st_mtime_ns
    }
    return Ended(process.returncode, VARYING.sub(b"", stdout), said, written, seconds)


def files_of(folder: Path) -> list[Path]:
    """Every file below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def undisturbed(name: str, inputs: Path, folder: Path) -> Ended:
    """What a command gives that nobody kills, in a folder that is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(inputs, folder)
    return run(COMMANDS[name], folder)


def kill_and_run_again(name: str, honest: Ended, inputs: Path, folder: Path, moment: Moment) -> bool:
    """Kill a command at a moment and run it again; whether the signal came before it had ended.

    Args:
        name: One of `COMMANDS`.
        honest: What an undisturbed run gives.
        inputs: Where `write_inputs` wrote.
        folder: Where that run worked, too: results name their inputs by path. It is made anew.
        moment: When, and by what.

    Raises:
        FoundError: An exit code, a number, or a file is not what it has to be.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(inputs, folder)
    first = run(COMMANDS[name], folder, moment, honest.seconds)
    # By the signal itself: SIGKILL, and any while the interpreter ends, when all is done. A shell reports 128 + it.
    if first.code not in {honest.code, 128 + moment.number, -moment.number}:
        raise FoundError(f"{name} {moment}: exit code {first.code}")
    again = run(COMMANDS[name], folder)
    if again.code == 1 and "--force" in again.stderr:  # killed when all was written: it is there, and not overwritten
        again = honest
    if again.code != honest.code or again.stdout != honest.stdout:
        raise FoundError(f"{name} {moment}: run again it ends with {again.code}, and prints {again.stdout[-500:]!r}")
    left = {path.relative_to(folder).as_posix() for path in files_of(folder)}
    expected = {path.relative_to(inputs).as_posix() for path in files_of(inputs)} | set(honest.files)
    stray = sorted(path for path in left - expected if not path.startswith("cache/") or path.endswith(".tmp"))
    if stray or expected - left:
        raise FoundError(f"{name} {moment}: left {stray}, lost {sorted(expected - left)}")
    for path, content in honest.files.items():
        if comparable(path, VARYING.sub(b"", (folder / path).read_bytes())) != comparable(path, content):
            raise FoundError(f"{name} {moment}: {path} differs from that of an undisturbed run")
    return first.code != honest.code


def comparable(path: str, content: bytes) -> object:
    """What two runs must have in common of a file: all of it, but for the seconds that each matrix took."""
    if path.endswith(".csv"):
        frame = pd.read_csv(io.BytesIO(content), dtype=str)
        return frame.drop(columns="seconds", errors="ignore").to_csv()
    if path.endswith(".html"):  # its table has the seconds, too
        return content.rstrip().endswith(b"</html>")
    if path.endswith((".parquet", ".pdf", ".png")):  # of the numbers of layers.csv
        return len(content) > 0
    return content


def moments(seed: int, count: int) -> list[tuple[str, Moment]]:
    """Commands in turn, each with a moment of its own."""
    r = random.Random(seed)
    numbers = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
    out = []
    for i in range(count):
        number = r.choice(numbers)
        times = r.choice((1, 2, 3)) if number == signal.SIGINT else 1
        out.append((list(COMMANDS)[i % len(COMMANDS)], Moment(r.uniform(0.0, 1.0), number, times)))
    return out
