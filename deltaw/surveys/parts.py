"""What a survey keeps of each adapter: one file, from which the same command goes on and the pairs are made.

The files lie in a folder of the output directory that bears the identity of the base and the options, each under the
identity of the adapter's own files, and are removed when the tables are written.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deltaw.documents import parse_object
from deltaw.errors import ResultsError
from deltaw.files import remove_left, replacing
from deltaw.measurement.journal import lock
from deltaw.types import Vector

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from filelock import FileLock
    from numpy.typing import NDArray

FOLDER = ".deltaw-survey"
ABOUT = "deltaw"


@dataclass(frozen=True)
class Looked:
    """What is known of one adapter once it was read.

    Attributes:
        format: `peft lora`, `kohya`, `safetensors`, …
        base_name: The base that it names.
        method: `lora`, `dora`, `full`, …: of most of its matrices.
        reason: Why it has no numbers; empty where it has.
        notes: What a reader should know: matrices that could not be read.
        other_base, nonfinite, unscaled: Facts that flags follow from.
        untrained: How many matrices have B = 0.
        parameters: Numbers that it stores.
        keys: Its matrices, by the base's names.
        shapes: Rows and columns of each.
        ranks: Directions of each that a factored update has; 0 for a dense one.
        norms: ‖ΔW‖F of each, (K,).
        base_norms: ‖W0‖F of each, (K,); NaN without the base.
        sigma: Leading singular values, (K, ≤ 16), zeros behind the last.
        effective_rank, energy_at_1, factor_balance: Of each, (K,); NaN where it does not apply.
    """

    format: str = ""
    base_name: str = ""
    method: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()
    other_base: bool = False
    nonfinite: bool = False
    unscaled: bool = False
    untrained: int = 0
    parameters: int = 0
    keys: tuple[str, ...] = ()
    shapes: tuple[tuple[int, int], ...] = ()
    ranks: tuple[int, ...] = ()
    norms: Vector = field(default_factory=lambda: np.zeros(0))
    base_norms: Vector = field(default_factory=lambda: np.zeros(0))
    sigma: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    effective_rank: Vector = field(default_factory=lambda: np.zeros(0))
    energy_at_1: Vector = field(default_factory=lambda: np.zeros(0))
    factor_balance: Vector = field(default_factory=lambda: np.zeros(0))

    @property
    def norm(self) -> float:
        """‖ΔW‖F over all matrices."""
        return float(np.sqrt(self.norms @ self.norms))


ARRAYS = ("norms", "base_norms", "sigma", "effective_rank", "energy_at_1", "factor_balance")


class SurveyFolder:
    """The folder of one survey, locked against a second one. A context manager.

    Args:
        out: The output directory, created; None for a folder that is gone afterwards.
        identity: A digest of the base and of every option that decides the numbers.
        resume: Whether to take over what an earlier run of the same identity finished.

    Raises:
        ResultsError: The directory cannot be written, or another run is writing to it.
    """

    def __init__(self, out: Path | None, identity: str, *, resume: bool) -> None:
        self._lock: FileLock | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if out is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="deltaw-survey-")
            self.root = Path(self._temporary.name)
        else:
            self._lock = lock(out)
            remove_left(out)
            self.root = out / FOLDER
            if self.root.is_dir():
                for other in self.root.iterdir():
                    if not resume or other.name != identity:
                        shutil.rmtree(other, ignore_errors=True)
        self.folder = self.root / identity
        self.folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self, *, finished: bool = False) -> None:
        """Release the directory; `finished` removes the folder."""
        if self._temporary is not None:
            self._temporary.cleanup()
        elif finished:
            shutil.rmtree(self.root, ignore_errors=True)
        if self._lock is not None:
            self._lock.release()

    def path(self, identity: str) -> Path:
        """The file of an adapter."""
        return self.folder / f"{identity}.safetensors"

    def get(self, identity: str) -> Looked | None:
        """What is finished of an adapter; None where nothing is, or its file is damaged."""
        from safetensors import SafetensorError, safe_open

        if not self.path(identity).is_file():
            return None
        try:
            with safe_open(self.path(identity), "np") as file:
                about = parse_object(file.metadata()[ABOUT], str(self.path(identity))).values
                arrays = {name: np.asarray(file.get_tensor(name)) for name in ARRAYS}
            return _looked(about, arrays)
        except (SafetensorError, ResultsError, ValueError, KeyError, TypeError, OSError):
            return None  # damaged: read again

    def put(self, identity: str, looked: Looked, tensors: Mapping[str, NDArray[np.generic]]) -> None:
        """Keep what is finished of an adapter.

        Args:
            identity: Of the adapter.
            looked: What is known of it.
            tensors: What its pairs are made of: `sketch`, `signs`, and leading directions of dense updates.

        Raises:
            ResultsError: It cannot be written.
        """
        from safetensors.numpy import save_file

        about = {f.name: getattr(looked, f.name) for f in fields(looked) if f.name not in ARRAYS}
        arrays = {name: np.ascontiguousarray(getattr(looked, name), dtype=np.float64) for name in ARRAYS}
        try:
            with replacing(self.path(identity), one_of_many=True) as temporary:
                save_file({**arrays, **tensors}, temporary, {ABOUT: json.dumps(about)})
        except OSError as e:
            raise self.unwritable(e) from e

    def unwritable(self, error: OSError) -> ResultsError:
        """What is said where the disk is full, or may not be written to."""
        return ResultsError(
            f"{self.root.parent}: cannot be written ({error.strerror or error}); free some space and run again, what "
            "is finished is kept"
        )

    @property
    def scratch(self) -> Path:
        """A file for what is needed while the survey runs and no longer."""
        return self.folder / "scratch"

    def tensor(self, identity: str, name: str) -> NDArray[np.generic]:
        """One of the tensors that were kept.

        Raises:
            ResultsError: It is gone.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path(identity), "np") as file:
                found = file.get_tensor(name)
        except (SafetensorError, OSError) as e:
            raise ResultsError(f"{self.folder}: what was kept of an adapter is gone ({e}); run again") from e
        return np.asarray(found)


# about: JSON that this program wrote itself.
def _looked(about: Mapping[str, object], arrays: Mapping[str, NDArray[np.float64]]) -> Looked:
    """As it was before it was written: lists are tuples again."""
    values = {k: _fixed(v) for k, v in about.items()}
    return Looked(**values, **arrays)  # type: ignore[arg-type]  # our own file: each as the field has it


def _fixed(value: object) -> object:
    return tuple(map(_fixed, value)) if isinstance(value, list) else value
