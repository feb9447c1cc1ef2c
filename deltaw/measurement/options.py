"""The options of an analysis, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from deltaw.errors import OptionError

if TYPE_CHECKING:
    import torch

MODES = ("exact", "fast")


@dataclass(frozen=True)
class Options:
    """What decides the numbers of an analysis; see interface `analyze` for the meaning.

    Raises:
        OptionError: A value cannot be used.
    """

    mode: str = "exact"
    device: str = "auto"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rename: tuple[str, ...] = ()
    split_fused: bool = False
    alignment: bool = False
    top_k: int = 10
    epsilon: float = 0.5
    tolerance: float = 0.03
    cache: bool = True

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise OptionError(f"mode {self.mode!r} is unknown; expected one of {', '.join(MODES)}")
        if self.top_k < 1:
            raise OptionError(f"top_k is {self.top_k}; expected at least 1")
        if not 0 <= self.epsilon <= 1:
            raise OptionError(f"epsilon is {self.epsilon}; expected a cosine between 0 and 1")
        if not 0 < self.tolerance <= 1:
            raise OptionError(f"tolerance is {self.tolerance}; expected a relative width between 0 and 1")

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        values: Mapping[str, Any] = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


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
