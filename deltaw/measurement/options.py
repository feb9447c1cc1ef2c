"""The options of an analysis, checked once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypedDict

from deltaw.errors import OptionError
from deltaw.pairs.selection import ALL, Names, Selection
from deltaw.results.sources import writable
from deltaw.types import OptionValue

if TYPE_CHECKING:
    import torch

    from deltaw.activations import Activations
    from deltaw.activations.matching import MatrixInputs
    from deltaw.alignment.cache import BaseCache

MODES = ("exact", "fast")
EXECUTORS = ("threads", "ray")
# Options of `analyze` that decide how fast the numbers come, not what they are; and `activations`, where these lie:
# what is in them decides, by `activations_hash`.
SPEED_ONLY = frozenset({"device", "cache", "jobs", "memory", "resume", "activations"})
DATA_SETS = 2  # the target, and the source


ActivationFiles: TypeAlias = "str | Path | Activations | Sequence[str | Path | Activations]"


class AnalyzeOptions(TypedDict, total=False):
    """Options as a caller of `analyze` gives them; what is not given has its default there."""

    mode: str
    device: str
    include: str | Iterable[str]
    exclude: str | Iterable[str]
    rename: Names
    split_fused: bool
    alignment: bool
    activations: ActivationFiles
    top_k: int
    epsilon: float
    tolerance: float
    cache: bool
    jobs: int | None
    memory: int | str | None


def check_executor(executor: str) -> None:
    """Refuse an executor that there is not.

    Raises:
        OptionError: There is none of that name.
    """
    if executor not in EXECUTORS:
        raise OptionError(f"executor {executor!r} is unknown; expected one of {', '.join(EXECUTORS)}")


def selected(given: AnalyzeOptions) -> Selection:
    """What of two sides is asked for."""
    return Selection.of(
        include=given.get("include", ()),
        exclude=given.get("exclude", ()),
        rename=given.get("rename", ()),
        split_fused=given.get("split_fused", False),
    )


@dataclass(frozen=True)
class Options:
    """What decides the numbers of an analysis; see interface `analyze` for the meaning.

    Attributes:
        data: The inputs of the matrices on at most two data sets: what was to be learned, what was to be kept.

    Raises:
        OptionError: A value cannot be used.
    """

    mode: str = "exact"
    device: str = "auto"
    selection: Selection = ALL
    alignment: bool = False
    top_k: int = 10
    epsilon: float = 0.5
    tolerance: float = 0.03
    cache: bool = True
    data: tuple[MatrixInputs, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise OptionError(f"mode {self.mode!r} is unknown; expected one of {', '.join(MODES)}")
        if self.top_k < 1:
            raise OptionError(f"top_k is {self.top_k}; expected at least 1")
        if not 0 <= self.epsilon <= 1:
            raise OptionError(f"epsilon is {self.epsilon}; expected a cosine between 0 and 1")
        if not 0 < self.tolerance <= 1:
            raise OptionError(f"tolerance is {self.tolerance}; expected a relative width between 0 and 1")

    @cached_property
    def vectors(self) -> BaseCache | None:
        """Where singular vectors of bases are kept, if they are: one cache for a run, which complains once."""
        from deltaw.alignment.cache import default_cache

        return default_cache() if self.alignment and self.cache else None

    def to_dict(self) -> dict[str, OptionValue]:
        """As JSON values, by the names that `analyze` has for them."""
        return {
            "mode": self.mode,
            "device": self.device,
            "include": list(self.selection.include),
            "exclude": list(self.selection.exclude),
            "rename": list(self.selection.rename),
            "split_fused": self.selection.split,
            "alignment": self.alignment,
            "activations": [writable(str(d.activations.path)) for d in self.data],
            "activations_hash": [d.activations.hash for d in self.data],
            "top_k": self.top_k,
            "epsilon": self.epsilon,
            "tolerance": self.tolerance,
            "cache": self.cache,
        }

    def numbers(self) -> dict[str, OptionValue]:
        """Those that decide the numbers, and not only how fast they come."""
        return {name: value for name, value in self.to_dict().items() if name not in SPEED_ONLY}


def open_data(given: ActivationFiles) -> tuple[MatrixInputs, ...]:
    """The data sets of `activations`, opened; which inputs are those of which matrix is not known yet.

    Raises:
        OptionError: There are more than two.
        ActivationsError: A file cannot be read.
    """
    if not given:
        return ()
    from deltaw.activations import Activations, open_activations
    from deltaw.activations.matching import MatrixInputs

    files = [given] if isinstance(given, (str, Path, Activations)) else [*given]
    if len(files) > DATA_SETS:
        raise OptionError(
            f"{len(files)} files of activations are given; expected at most two: first of what was to be learned, then "
            "of what was to be kept"
        )
    return tuple(MatrixInputs(open_activations(file)) for file in files)


def resolve_devices(name: str) -> list[torch.device]:
    """The torch devices of `auto`, `cpu`, `cuda` (all of them), `cuda:N` or `mps`.

    `auto` is CUDA if there is any, else the CPU: MPS has no float64, so it is only used when asked for.

    Raises:
        OptionError: The name is unknown, or there is no such device.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise OptionError(f"device {name!r} is unknown; expected auto, cpu, cuda, cuda:N or mps") from e
    if device.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"device {name!r}: no CUDA device is available here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(f"device {name!r}: there are {torch.cuda.device_count()} CUDA devices, cuda:0 is the first")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise OptionError(f"device {name!r}: no MPS device is available here; use --device cpu")
    if device.type not in {"cpu", "cuda", "mps"}:
        raise OptionError(f"device {name!r} is not supported; expected auto, cpu, cuda, cuda:N or mps")
    if name == "cuda":
        return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return [device]
