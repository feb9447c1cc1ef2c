"""`activations.safetensors`: the second moments of every matrix's inputs, by the names of a model's parameters.

The metadata's `deltaw_activations` is a JSON object: `format`, `inputs` (what the data was), `unseen` (matrices of
which no inputs were seen) and `matrices`, which has of each parameter the tensor with its sums, their form, count and
error. Matrices that met the same inputs (q, k and v) share one tensor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from deltaw.activations.moments import DIMENSIONS, Form, Moments
from deltaw.documents import Document, parse_object
from deltaw.errors import ActivationsError, near
from deltaw.files import expanded, near_path
from deltaw.results.sources import FileStamp, content_hash
from deltaw.tensors.tensorfile import OutputTensor, write_tensors
from deltaw.types import JsonValue

if TYPE_CHECKING:
    from torch import Tensor

KEY = "deltaw_activations"
FORMAT = 1
AGAIN = "collect them again with deltaw activations"


@dataclass(frozen=True)
class Stored:
    """Where the sums of one matrix's inputs lie, and what is known of them without reading them."""

    tensor: str
    form: Form
    shape: tuple[int, ...]
    count: int
    energy: float
    error: float
    inputs_first: bool


@dataclass(frozen=True, repr=False)
class Activations:
    """The inputs of a model's matrices on a data set, as they are stored.

    Attributes:
        path: The file.
        matrices: What is known of each, by the name of its parameter.
        unseen: Matrices of the model of which no inputs were seen.
        inputs: What the data was, in words; empty where it was not said.
        stamp: The file as it was when it was opened.
    """

    path: Path
    matrices: Mapping[str, Stored] = field(compare=False)
    unseen: tuple[str, ...] = ()
    inputs: str = ""
    stamp: FileStamp = field(default_factory=lambda: FileStamp("", 0, 0))

    def __repr__(self) -> str:
        """One line."""
        most = max((m.count for m in self.matrices.values()), default=0)
        return f"<Activations {self.path}: {len(self.matrices):,} matrices, up to {most:,} inputs each>"

    def __str__(self) -> str:
        """The path, as a command line has it."""
        return str(self.path)

    def __contains__(self, name: object) -> bool:
        return name in self.matrices

    @cached_property
    def hash(self) -> str:
        """Of its content, see `content_hash`."""
        return content_hash([self.stamp])

    def moments(self, name: str) -> Moments:
        """The second moments of one matrix's inputs, read from the file.

        Args:
            name: Of the parameter.

        Raises:
            ActivationsError: There is no such matrix, or its sums cannot be read.
        """
        import torch
        from safetensors import SafetensorError, safe_open

        stored = self.matrices.get(name)
        if stored is None:
            raise ActivationsError(f"{self.path}: holds no inputs of {name!r}.{near(name, self.matrices)}")
        try:
            with safe_open(self.path, framework="pt") as file:
                sums = file.get_tensor(stored.tensor)
        except (OSError, SafetensorError) as e:
            raise ActivationsError(f"{self.path}: cannot be read ({e}); {AGAIN}") from e
        diagonal = sums.diagonal() if stored.form == "moments" else sums
        if not torch.isfinite(sums).all() or (stored.form != "sketch" and bool((diagonal < 0).any())):
            raise ActivationsError(
                f"{self.path}: the sums of {name!r} hold numbers that no second moments have (not finite, or below 0 "
                f"on the diagonal); {AGAIN}"
            )
        return Moments(stored.form, sums, stored.count, stored.energy, stored.error, stored.inputs_first)


def write_activations(
    path: Path, moments: Mapping[str, Moments], *, unseen: Iterable[str] = (), inputs: str = ""
) -> Activations:
    """Write the moments of matrices by the names of their parameters; whole or not at all.

    Raises:
        ActivationsError: The file cannot be written.
    """
    placed: dict[int, str] = {}  # by identity: matrices that met the same inputs hold the same sums
    entries: list[OutputTensor] = []
    about: dict[str, JsonValue] = {}
    for name, m in moments.items():
        if id(m.sums) not in placed:
            placed[id(m.sums)] = name
            entries.append(OutputTensor(name, "float64", tuple(m.sums.shape), partial(_same, m.sums)))
        about[name] = {
            "tensor": placed[id(m.sums)],
            "form": m.form,
            "count": m.count,
            "energy": m.energy,
            "error": m.error,
            "inputs_first": m.inputs_first,
        }
    text: dict[str, JsonValue] = {"format": FORMAT, "inputs": inputs, "unseen": [*unseen], "matrices": about}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, entries, {KEY: json.dumps(text, ensure_ascii=False, allow_nan=False)})
    except OSError as e:
        raise ActivationsError(f"{path}: cannot be written ({e.strerror or e}); choose another file") from e
    return open_activations(path)


def _same(sums: Tensor) -> Tensor:
    return sums


def open_activations(path: str | Path | Activations) -> Activations:
    """Open a file that `collect_activations` wrote; no sums are read yet.

    Raises:
        ActivationsError: It is not there, is no such file, or does not hold what its header says.
    """
    from safetensors import SafetensorError, safe_open

    if isinstance(path, Activations):
        return path
    path = expanded(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise ActivationsError(f"{path}: {what}; expected what deltaw activations wrote.{near_path(path)}")
    try:
        stamp = FileStamp.of(path)
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(KEY)
            shapes = {}
            for name in file.keys():  # noqa: SIM118  (no mapping)
                tensor = file.get_slice(name)
                shapes[name] = tuple(tensor.get_shape()) if tensor.get_dtype() == "F64" else None
    except (OSError, SafetensorError) as e:
        raise ActivationsError(f"{path}: cannot be read ({e}); {AGAIN}") from e
    if text is None:
        raise ActivationsError(
            f"{path}: is a safetensors file without activations; expected what deltaw activations wrote"
        )
    about = parse_object(text, str(path), error=ActivationsError)
    version = about.whole("format")
    if version != FORMAT:
        raise ActivationsError(f"{path}: has format {version}, expected {FORMAT}; {AGAIN}")
    listed = about.inner("matrices")
    matrices = {name: _stored(listed.inner(name), shapes) for name in listed}
    return Activations(path, matrices, about.texts("unseen"), about.text("inputs"), stamp)


def _stored(about: Document, shapes: Mapping[str, tuple[int, ...] | None]) -> Stored:
    """One matrix of a file, checked against the tensor that it names.

    Raises:
        ActivationsError: They do not fit.
    """
    tensor, form = about.text("tensor", None), about.text("form", None)
    count, energy, error = about.whole("count"), about.number("energy"), about.number("error", 0.0)
    shape = shapes.get(tensor)
    fits = (
        shape is not None
        and len(shape) == DIMENSIONS.get(form)
        and math.prod(shape) > 0
        and (form != "moments" or shape[0] == shape[1])
    )
    if shape is None or not fits or count < 1 or energy < 0 or error < 0:
        raise ActivationsError(
            f"{about.where}: {form!r} of {count} inputs in a tensor {tensor!r} of shape {shape} are not second moments "
            f"in float64; {AGAIN}"
        )
    return Stored(tensor, cast("Form", form), shape, count, energy, error, about.flag("inputs_first"))
