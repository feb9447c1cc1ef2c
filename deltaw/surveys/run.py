"""`deltaw.survey`: each adapter is read once, then all are compared."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deltaw.adapters import open_base
from deltaw.checkpoints import Checkpoint, locate
from deltaw.checkpoints.remote import stamps
from deltaw.errors import CheckpointError, DeltaWError, OptionError, near
from deltaw.measurement.engines.cluster import Cluster
from deltaw.measurement.engines.sharing import Workers
from deltaw.measurement.journal import digest
from deltaw.measurement.options import check_executor, resolve_devices
from deltaw.measurement.versions import versions
from deltaw.pairs.selection import Selection
from deltaw.results.sources import FileStamp, writable
from deltaw.surveys import rows
from deltaw.surveys.all_pairs import sketched_cosines
from deltaw.surveys.clusters import axis_shares, clusters, coordinates, cut_at
from deltaw.surveys.command import command
from deltaw.surveys.distributed import files_in, look_on
from deltaw.surveys.flags import RULES, copies, flags
from deltaw.surveys.inputs import Member, members
from deltaw.surveys.look import SurveyBase, look
from deltaw.surveys.merging import check_merge
from deltaw.surveys.neighbours import candidates, nearest
from deltaw.surveys.pairs import compare_pairs, cosine_null, energies
from deltaw.surveys.parts import Looked, SurveyFolder
from deltaw.surveys.reading import Factored
from deltaw.surveys.result import Survey
from deltaw.surveys.saved import refuse_others
from deltaw.surveys.table import UpdateTable
from deltaw.surveys.tables import SurveyRecord, Tables

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

log = logging.getLogger("deltaw")

EXACT = 200  # adapters up to which all pairs are compared from their factors
MEMORY = 400 << 20  # bytes for the vectors, or the sketches, that are held at a time
NULLS = 20_000  # pairs of which the cosine under independence is computed
Progress = Callable[[str, int, int], None]


def survey(
    base: Any,
    adapters: str | Path | Sequence[str | Path],
    *,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    merge_check: Sequence[str] = (),
    mark: str = "",
    out: str | Path | None = None,
    jobs: int | None = None,
    memory: int | str | None = None,
    resume: bool = True,
    force: bool = False,
    executor: str = "threads",
    ray_address: str | None = None,
    progress: Progress | None = None,
) -> Survey:
    """Look at many adapters of one base: a row of each, who is alike, what stands out.

    Args:
        base: Path, Hub id, `nn.Module` or state dict; None to look at adapters alone.
        adapters: Paths of adapters (or of full fine-tunes) or of folders of them, patterns, `@FILE` or `FILE.txt` with
            one on each line, Hub ids, filters of the Hub (`hub: filter=base_model:adapter:org/name limit=500`).
        include, exclude: Regular expressions on the names of the matrices.
        merge_check: Names of adapters whose merge is looked at.
        mark: The adapter that the report marks; only checked here.
        out: A directory to write the tables to. What an interrupted survey finished is kept there.
        jobs: Adapters at a time; by default as many as cores.
        memory: Bytes for what is held at a time, or a size such as `2GB`.
        resume: Go on from what an interrupted survey of the same base left in `out`.
        force: Overwrite other results in `out`.
        executor: Where adapters are read: by `threads` of this process, or by `ray`, whose workers open them by
            themselves. Pairs are compared here.
        ray_address: Of the cluster; default that of RAY_ADDRESS, or one of this machine alone.
        progress: Called with (stage, done, total).

    Raises:
        DeltaWError: The base or no adapter can be used, or `out` cannot be written.
        CheckpointError: An adapter of the merge cannot be used.
        OptionError: An option has a bad value.
    """
    started = time.perf_counter()
    given = [adapters] if isinstance(adapters, (str, Path)) else list(adapters)
    everyone, notes = members(given)
    asked = _asked(everyone, merge_check, mark)
    selection = Selection.of(include=include, exclude=exclude)
    selection.wanted()
    workers = Workers(resolve_devices("cpu"), jobs, memory)
    check_executor(executor)
    checkpoint = None if base is None else open_base(base)
    name = "" if checkpoint is None else writable(checkpoint.source)
    if out is not None and not force:
        refuse_others(Path(out), name)
    show = progress or (lambda stage, done, total: None)
    # Tensors in memory have no files: nothing says that they are still what they were.
    resume = resume and (checkpoint is None or bool(checkpoint.files))
    with (
        SurveyFolder(None if out is None else Path(out), _identity(checkpoint, selection), resume=resume) as parts,
        Cluster(ray_address) if executor == "ray" else nullcontext() as cluster,
    ):
        found, about = Setup(checkpoint, selection, everyone, parts, workers, cluster, show).tables()
        merge = None
        if asked:
            _refuse_failed(found.adapters, asked)
            merge = check_merge(checkpoint, asked, selection, lambda d, t: show("merging", d, t))
        about = replace(
            about,
            base=name,
            command=command(base, given, selection, merge_check, mark),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=time.perf_counter() - started,
            versions=versions(),
            notes=notes,
            rules=RULES,
        )
        survey_ = Survey(found, about, merge)
        if out is not None:
            survey_.save(out, report=False, force=force)
        parts.close(finished=True)
    return survey_


def _asked(everyone: Sequence[Member], merge_check: Sequence[str], mark: str) -> dict[str, str]:
    """The adapters of a merge by name.

    Raises:
        OptionError: One is unknown, or fewer than two were named.
    """
    known = {member.name: member.source for member in everyone}
    for option, names in (("--merge-check", merge_check), ("--mark", [mark] if mark else [])):
        for wanted in names:
            if wanted not in known:
                raise OptionError(f"{option}: no adapter of the survey is called {wanted!r}.{near(wanted, known)}")
    chosen = {wanted: known[wanted] for wanted in merge_check}
    if len(chosen) == 1:
        raise OptionError("--merge-check needs at least two adapters, separated by commas")
    return chosen


def _refuse_failed(adapters: pd.DataFrame, asked: Iterable[str]) -> None:
    """End where an adapter of a merge cannot be read.

    Raises:
        CheckpointError: One cannot.
    """
    lost = adapters[adapters["name"].isin(list(asked)) & (adapters["reason"] != "")]
    if len(lost):
        raise CheckpointError(f"--merge-check: {lost['name'].iloc[0]} cannot be merged: {lost['reason'].iloc[0]}")


def _identity(base: Checkpoint | None, selection: Selection) -> str:
    files = [] if base is None else [str(file) for file in base.files]
    return digest(version("deltaw"), files, None if base is None else base.config.values, vars(selection))


class PairTables(NamedTuple):
    """Tables of the pairs that were looked at; the cosines of all, (N, N), with half of their intervals' widths."""

    pairs: pd.DataFrame
    kinds: pd.DataFrame
    cosine: NDArray[np.floating]
    half: NDArray[np.floating]
    looked_at: NDArray[np.int64]
    how: str


@dataclass(frozen=True)
class Setup:
    """What a survey works with."""

    base: Checkpoint | None
    selection: Selection
    members: Sequence[Member]
    parts: SurveyFolder
    workers: Workers
    cluster: Cluster | None
    show: Progress

    @property
    def memory(self) -> int:
        """Bytes for what is held at a time."""
        asked = self.workers.memory
        return MEMORY if asked is None else int(asked)

    def tables(self) -> tuple[Tables, SurveyRecord]:
        """All tables, and how pairs and clusters were decided.

        Raises:
            CheckpointError: No adapter can be used.
        """
        known = [identity(m.source) for m in self.members]
        identities = [key or f"unknown-{i}" for i, key in enumerate(known)]
        all_ = self._look(identities, [key is not None for key in known])
        usable = [i for i, looked in enumerate(all_) if looked.keys]
        if all(looked.reason for looked in all_):
            more = f" (and {len(all_) - 1} more adapters)" if len(all_) > 1 else ""
            raise CheckpointError(f"no adapter can be used: {self.members[0].name}: {all_[0].reason}{more}")
        names = [self.members[i].name for i in usable]
        table = UpdateTable.of([all_[i] for i in usable])
        found = self._pairs(table, usable, names, identities)
        order = nearest(found.cosine, found.looked_at)
        cut = cut_at(_nulls(table))
        group = clusters(found.cosine, cut)
        at = coordinates(found.cosine)
        columns = rows.sizes(all_)
        place = {name: i for i, name in enumerate(m.name for m in self.members)}
        whose = {place[names[i]]: why for i, why in copies(found.pairs, names).items()}
        said = flags(all_, columns, whose, "" if self.base is None else self.base.source)
        close = {
            i: (names[order[k, 0]], float(found.cosine[k, order[k, 0]]))
            for k, i in enumerate(usable)
            if order.shape[1] and order[k, 0] >= 0
        }
        frame = rows.adapters_frame(
            self.members,
            all_,
            columns,
            said,
            {i: int(group[k]) for k, i in enumerate(usable)},
            close,
            {i: at[k] for k, i in enumerate(usable)},
        )
        tables = Tables(
            adapters=frame,
            pairs=found.pairs,
            kinds=found.kinds,
            neighbours=rows.neighbours_frame(names, order, found.cosine, found.half),
            spectra=rows.spectra_frame(names, [all_[i] for i in usable]),
        )
        return tables, SurveyRecord(
            compared=found.how,
            cut=cut.cosine,
            cut_null=cut.null,
            cut_rule=cut.rule,
            axes=axis_shares(found.cosine, at),
        )

    def _look(self, identities: Sequence[str], known: Sequence[bool]) -> list[Looked]:
        """Every adapter, read now or by an earlier run."""
        found: dict[int, Looked] = {}
        for i, key in enumerate(identities):
            kept = self.parts.get(key) if known[i] else None
            if kept is not None and not kept.notes:  # what failed may have been a full memory or a lost disk
                found[i] = kept
        todo = [i for i in range(len(self.members)) if i not in found]
        if found:
            log.info("%d of %d adapters were read by an earlier run", len(found), len(self.members))

        def done(i: int, looked: Looked) -> None:
            found[i] = looked
            if looked.reason:
                log.info("%s: %s", self.members[i].name, looked.reason)
            self.show("reading", len(found), len(self.members))

        if self.cluster is None:
            self._look_here(identities, todo, done)
        else:
            args = self.cluster, self.base, self.selection, self.members, todo, self.workers.jobs
            with closing(look_on(*args)) as results:
                for i, looked, tensors in results:
                    if tensors is not None:
                        self.parts.put(identities[i], looked, tensors)
                    done(i, looked)
        return [found[i] for i in range(len(self.members))]

    def _look_here(self, identities: Sequence[str], todo: Sequence[int], done: Callable[[int, Looked], None]) -> None:
        """By threads of this process."""
        base, N = SurveyBase(self.base), len(self.members)

        def one(i: int, device: object) -> Looked:
            looked, tensors = look(base, self.members[i].source, self.selection)
            if tensors is not None:
                self.parts.put(identities[i], looked, tensors)
            return looked

        # Of all adapters, not of what is left: threads decide the last digits.
        self.workers.share_out(one, todo, done, work=lambda i: 1.0, need=lambda i: 64 << 20, total=N, most=N)

    def _pairs(
        self, table: UpdateTable, usable: Sequence[int], names: Sequence[str], identities: Sequence[str]
    ) -> PairTables:
        """Tables of pairs, the cosines of all with half of their intervals' widths, and how they were compared."""
        own = [identities[i] for i in usable]
        N = len(usable)

        def tensors(i: int, name: str) -> NDArray[np.generic]:
            return self.parts.tensor(own[i], name)

        cosine: NDArray[np.floating]
        half: NDArray[np.floating]
        if N <= EXACT:
            compared = "exact"
            pairs = np.stack(np.triu_indices(N, 1), axis=1).astype(np.int64)
            cosine, half = np.eye(N), np.zeros((N, N))
        else:
            compared = "sketched"
            try:
                cosine, half = sketched_cosines(
                    table,
                    lambda i: tensors(i, "sketch"),
                    self.parts.scratch,
                    memory=self.memory,
                    done=lambda d, t: self.show("sketches", d, t),
                )
            except OSError as e:
                raise self.parts.unwritable(e) from e
            pairs = candidates(cosine, half)
        sources = [self.members[i].source for i in usable]
        read = Factored(self.base, sources, self.selection, table, self.parts, own)
        frame, kinds = compare_pairs(
            table, pairs, read, tensors, names, memory=self.memory, done=lambda d, t: self.show("comparing", d, t)
        )
        a, b = pairs.T
        value = frame["cosine"].to_numpy(dtype=np.float64)
        width = (frame["cosine_high"] - frame["cosine_low"]).to_numpy(dtype=np.float64) / 2
        for i, j in ((a, b), (b, a)):
            cosine[i, j], half[i, j] = value, width
        return PairTables(frame, kinds, cosine, half, pairs, compared)


def identity(source: str) -> str | None:
    """Of an adapter's files, as they are; None where they are not there."""
    try:
        files = files_in(locate(source)[0])
        return digest(source, [str(s) for s in stamps(map(FileStamp.of, files))])
    except (DeltaWError, OSError):
        return None


def _nulls(table: UpdateTable) -> NDArray[np.float64]:
    """The standard deviations of cosines of independent updates, of all pairs or of many."""
    N = len(table.index)
    pairs = np.stack(np.triu_indices(N, 1), axis=1) if N * N <= 2 * NULLS else _some_pairs(N)
    everything = np.ones(len(table.columns), dtype=np.bool_)
    a_sq, b_sq = energies(table, pairs, everything)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(cosine_null(table, pairs, everything) / np.sqrt(a_sq * b_sq))


def _some_pairs(N: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(0)
    a = rng.integers(0, N, NULLS)
    return np.stack((a, (a + rng.integers(1, N, NULLS)) % N), axis=1)
