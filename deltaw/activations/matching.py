"""Which stored inputs are those of which matrix of an analysis."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from deltaw.activations.file import Activations, Stored
from deltaw.activations.moments import Moments
from deltaw.documents import Document
from deltaw.errors import ActivationsError
from deltaw.pairs.matching import join
from deltaw.types import Pair, matrix_key

LISTED = 3  # names in a note


@dataclass(frozen=True)
class MatrixInputs:
    """The stored inputs of the matrices of one analysis.

    Attributes:
        activations: The file.
        names: Of parameters in the file, by the names of the analysis's tensors.
    """

    activations: Activations
    names: Mapping[str, str] = field(default_factory=dict, compare=False)

    def located(self) -> MatrixInputs:
        """The same by an absolute path, for a process that works elsewhere."""
        return replace(self, activations=replace(self.activations, path=self.activations.path.absolute()))

    def of(self, pair: Pair) -> Moments | None:
        """The inputs of a pair's matrix; None where the file has none.

        Raises:
            ActivationsError: They cannot be read.
        """
        key = self._key(pair)
        if key is None:
            return None
        found = self.activations.moments(key)
        if found.acts_on_rows and found.dimension > pair.shape[0]:  # a vocabulary of which the first rows are compared
            found = replace(found, sums=found.sums[: pair.shape[0]])
        return found

    def _key(self, pair: Pair) -> str | None:
        name = self.names.get(pair.name)
        if name is None or pair.ndim < 2:
            return None
        expert = pair.view.expert
        key = name if expert is None else matrix_key(name, f"expert {expert}")
        return key if key in self.activations else None

    def turned(self, pair: Pair) -> bool:
        """Whether the inputs of a pair's matrix meet its rows, as its layout was not known: then it is to be turned."""
        key = self._key(pair)
        return key is not None and turned(self.activations.matrices[key], pair)

    def check(self, pair: Pair) -> bool:
        """Whether the file has the inputs of a pair's matrix.

        Raises:
            ActivationsError: It has inputs of another size.
        """
        key = self._key(pair)
        if key is None:
            return False
        stored = self.activations.matrices[key]
        rows, cols = pair.shape[::-1] if turned(stored, pair) else pair.shape
        size, of, expected = stored.shape[-1], "an input", cols
        if stored.form == "counts":
            size, of, expected = stored.shape[0], "a table", rows
        if size != expected and not (stored.form == "counts" and size > rows):
            raise ActivationsError(
                f"{self.activations.path}: {of} of {key!r} has {size:,} entries, its matrix is {rows:,}×{cols:,}; "
                "collect the activations of the base that is analysed"
            )
        return True


def turned(stored: Stored, pair: Pair) -> bool:
    """Whether a model says that a matrix is stored inputs × outputs, and the analysis takes it for the other, or so."""
    return stored.form != "counts" and pair.ndim == 2 and stored.inputs_first != pair.view.transposed


def match(activations: Activations, pairs: Sequence[Pair], configs: Iterable[Document]) -> tuple[MatrixInputs, str]:
    """Which inputs belong to which pair, by their names and what libraries make of names.

    Args:
        activations: The file.
        pairs: The pairs of the analysis.
        configs: The config.json of its sides.

    Returns:
        The inputs, and a note where some matrices have none; else an empty text.

    Raises:
        ActivationsError: No matrix has inputs, or one has inputs of another size.
    """
    matrices = [p for p in pairs if p.route != "vector"]
    joined = join(
        dict.fromkeys({_parameter(key) for key in activations.matrices}),
        dict.fromkeys(p.name for p in matrices),
        *configs,
    )
    found = MatrixInputs(activations, joined.pairs)
    without = [p.label for p in matrices if not found.check(p)]
    if matrices and len(without) == len(matrices):
        raise ActivationsError(
            f"{activations.path}: holds the inputs of no matrix of this analysis (it has "
            f"{next(iter(activations.matrices), 'none')!r}, the analysis {matrices[0].name!r}); collect the "
            "activations of the base that is analysed"
        )
    if not without:
        return found, ""
    more = "" if len(without) <= LISTED else f" and {len(without) - LISTED:,} more"
    return found, (
        f"on data: {activations.path.name} has the inputs of {len(matrices) - len(without):,} of {len(matrices):,} "
        f"matrices, and none of {', '.join(without[:LISTED])}{more}"
    )


def _parameter(key: str) -> str:
    """The parameter that a key of the file is of: experts have their number in it."""
    return str(json.loads(key)[0]) if key.startswith("[") else key
