"""What an unfinished run has made so far: one file per matrix, from which the same command goes on.

They lie in a folder of the output directory that bears the identity of the inputs and options, and are removed when the
adapter is whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deltaw.edits.directions import KnownSpectrum
from deltaw.errors import ResultsError
from deltaw.files import expanded, replacing
from deltaw.measurement.journal import lock

if TYPE_CHECKING:
    from torch import Tensor

    from deltaw.results.sources import Source

FOLDER = ".deltaw-parts"


@dataclass(frozen=True)
class MatrixKept:
    """What one matrix keeps.

    Attributes:
        rank: Of the stored pair; 0 where there is none.
        energy: ‖ΔW‖F².
        kept: Σσ² of the directions that are stored.
        error: ‖ΔW − B·A‖F of the factors as stored.
        signal: How many directions stand above the noise; None where that is not known.
        size_on_data, error_on_data: ‖ΔW·C^½‖F and ‖(ΔW − B·A)·C^½‖F on the inputs of a data set, where they are known;
            of a sketch the least and the most that they may be.
    """

    rank: int
    energy: float
    kept: float
    error: float
    signal: int | None
    size_on_data: float | None = None
    error_on_data: float | None = None


@dataclass(frozen=True)
class FinishedMatrix:
    """What is finished of one matrix.

    Attributes:
        spread: Its spectrum.
        kept: What its pair keeps; None where the rank is not decided yet.
    """

    spread: KnownSpectrum
    kept: MatrixKept | None = None


def refuse_existing(out: Path, what: str, last: str, *, force: bool) -> Path:
    """The directory to write to; nothing in it is touched.

    Args:
        out: As it was given.
        what: What is to be written, in a word.
        last: The file without which that is not whole.
        force: Whether what is there may be overwritten.

    Raises:
        ResultsError: Something is there that is no unfinished run's.
    """
    if out.exists() and not out.is_dir():
        raise ResultsError(f"{out}: is a file; expected a directory for the {what}, choose another --out")
    there = sorted(p.name for p in out.iterdir() if not p.name.startswith(".deltaw-")) if out.is_dir() else []
    unfinished = out.is_dir() and any(out.glob(".deltaw-*/*/*"))
    if there and not force and (not unfinished or last in there):
        raise ResultsError(f"{out}: holds {there[0]} already; choose another --out, or --force to overwrite it")
    return out


def refuse_inputs(out: Path, sources: Iterable[Source]) -> None:
    """End where what is to be written would take the place of what is read, even if it may be overwritten.

    Raises:
        ResultsError: An input lies in `out`.
    """
    here = out.resolve()
    for source in sources:
        named = expanded(source.path) if source.path else None
        if (named is not None and named.resolve() == here) or any(Path(f.path).parent == here for f in source.files):
            raise ResultsError(
                f"{out}: holds an input ({source.path}), which would be overwritten; choose another --out"
            )


class EditFolder:
    """The folder of one run, locked against a second one.

    Args:
        out: The output directory, created.
        identity: A digest of the inputs and of every option that decides the numbers; empty to keep nothing.
        resume: Whether to take over what an earlier run of the same identity finished.

    Raises:
        ResultsError: The directory cannot be written, or another run is writing to it.
    """

    def __init__(self, out: Path, identity: str, *, resume: bool) -> None:
        self.out = out
        self._lock = lock(out)
        self.folder = out / FOLDER / (identity or "memory")
        if (out / FOLDER).is_dir():
            for other in (out / FOLDER).iterdir():
                if not (resume and identity and other == self.folder):
                    shutil.rmtree(other, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)

    def close(self, *, finished: bool = False) -> None:
        """Release the directory; `finished` removes the folder."""
        if finished:
            shutil.rmtree(self.out / FOLDER, ignore_errors=True)
        self._lock.release()

    def path(self, key: str) -> Path:
        """The file of a matrix."""
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"

    def get(self, key: str) -> FinishedMatrix | None:
        """What is finished of a matrix; None where nothing is, or its file is damaged."""
        from safetensors import SafetensorError, safe_open

        path = self.path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "np") as file:
                about = json.loads(file.metadata()["deltaw"])
                values = np.asarray(file.get_tensor("values"), dtype=np.float64)
            spread = KnownSpectrum(values, about["energy"], about["edge"], about["signal"])
            return FinishedMatrix(spread, None if about["kept"] is None else MatrixKept(**about["kept"]))
        except (SafetensorError, ValueError, KeyError, TypeError, OSError):
            return None  # damaged: made again

    def factors(self, key: str) -> tuple[Tensor, Tensor]:
        """B (m, r) and A (r, n) of a matrix, as they are stored.

        Raises:
            ResultsError: They are gone.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path(key), "pt") as file:
                return file.get_tensor("B"), file.get_tensor("A")
        except (SafetensorError, OSError) as e:
            raise ResultsError(f"{self.folder}: a finished matrix is gone ({e}); run again") from e

    def put(self, key: str, part: FinishedMatrix, factors: Mapping[str, Tensor]) -> None:
        """Keep what is finished of a matrix.

        Raises:
            ResultsError: It cannot be written.
        """
        import torch
        from safetensors.torch import save_file

        spread = part.spread
        about = {
            "energy": spread.energy,
            "edge": spread.edge,
            "signal": spread.signal,
            "kept": None if part.kept is None else asdict(part.kept),
        }
        values = torch.from_numpy(np.array(spread.values, dtype=np.float64))
        tensors = {"values": values, **{n: t.cpu().contiguous() for n, t in factors.items()}}
        try:
            with replacing(self.path(key), one_of_many=True) as temporary:
                save_file(tensors, temporary, {"deltaw": json.dumps(about)})
        except OSError as e:
            raise ResultsError(
                f"{self.out}: cannot be written ({e.strerror or e}); free some space and run again, what is "
                "finished is kept"
            ) from e
