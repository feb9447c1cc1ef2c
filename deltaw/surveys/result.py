"""A survey: its tables, its files and its report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deltaw.errors import OptionError, UnknownNameError, near
from deltaw.surveys import saved
from deltaw.surveys.merging import Merge
from deltaw.surveys.tables import SurveyRecord, Tables
from deltaw.types import JsonValue

if TYPE_CHECKING:
    import pandas as pd

    from deltaw.reports.survey_plots import SurveyPlots

SCHEMA_VERSION = 1


class Survey:
    """Many adapters of one base. Made by `deltaw.survey`.

    Attributes:
        tables: Its tables; `adapters()`, `pairs()` and the others give copies.
        about: Where it comes from, and how clusters and flags were decided.
        merge: The interference of a proposed merge, where one was asked for.
    """

    def __init__(self, tables: Tables, about: SurveyRecord, merge: Merge | None = None) -> None:
        self.tables = tables
        self.about = about
        self.merge = merge

    def __repr__(self) -> str:
        """One line."""
        from deltaw.reports.notebook import survey_line

        return survey_line(self)

    def adapters(self) -> pd.DataFrame:
        """One row of each adapter: size, ranks, cluster, nearest, flags; see docs/survey.md."""
        return self.tables.adapters.copy()

    def pairs(self) -> pd.DataFrame:
        """How alike two adapters are: all pairs up to 200 adapters, above that each one's nearest."""
        return self.tables.pairs.copy()

    def pairs_by_kind(self) -> pd.DataFrame:
        """The same by kind of module."""
        return self.tables.kinds.copy()

    def spectra(self) -> pd.DataFrame:
        """‖ΔW‖ and leading singular values of each adapter by block and kind of module."""
        return self.tables.spectra.copy()

    def neighbours(self) -> pd.DataFrame:
        """The nearest 20 of each adapter."""
        return self.tables.neighbours.copy()

    def nearest(self, name: str, count: int = 10) -> pd.DataFrame:
        """The adapters that are most like one: `name`, `cosine`, `cosine_low`, `cosine_high`, the nearest first.

        Args:
            name: The adapter.
            count: How many; at most 20 are known.

        Raises:
            OptionError: There is no adapter of that name, or the number is not positive.
        """
        if count < 1:
            raise OptionError(f"count is {count}; expected at least 1")
        self.check_name(name)
        found = self.tables.neighbours
        mine = found[found["name"] == name].head(count).drop(columns="name")
        return mine.rename(columns={"neighbour": "name"}).reset_index(drop=True)

    def check_name(self, name: str) -> None:
        """End where no adapter has this name.

        Raises:
            UnknownNameError: None has.
        """
        names = list(map(str, self.tables.adapters["name"]))
        if name not in names:
            raise UnknownNameError(f"no adapter of the survey is called {name!r}.{near(name, names)}")

    @property
    def failed(self) -> list[tuple[str, str]]:
        """The adapters that have no numbers, and why."""
        frame = self.tables.adapters
        lost = frame[frame["reason"] != ""]
        return list(zip(map(str, lost["name"]), map(str, lost["reason"]), strict=True))

    @property
    def incomplete(self) -> list[tuple[str, str]]:
        """Adapters of which some matrices could not be read, and which."""
        frame = self.tables.adapters
        some = frame[(frame["reason"] == "") & (frame["notes"] != "")]
        return list(zip(map(str, some["name"]), map(str, some["notes"]), strict=True))

    @property
    def plot(self) -> SurveyPlots:
        """Figures as matplotlib axes: `plot.map()`, `plot.histogram("rank")`, `plot.similarity()`."""
        from deltaw.reports.survey_plots import SurveyPlots

        return SurveyPlots(self)

    def to_dict(self) -> dict[str, JsonValue]:
        """Every table but the spectra, as JSON values: NaN is null."""
        return {
            "schema_version": SCHEMA_VERSION,
            **saved.values(self.about),
            "adapters": saved.records(self.tables.adapters),
            "pairs": saved.records(self.tables.pairs),
            "merge_check": None if self.merge is None else self.merge.to_dict(),
        }

    def save(self, out: str | Path, *, report: bool = True, force: bool = False, mark: str = "") -> Path:
        """Write `adapters.csv`, `pairs.csv`, the other tables, `survey.json` and `report.html`.

        Args:
            out: A directory, created.
            report: Also write the report.
            force: Overwrite other results.
            mark: The adapter that the report marks.

        Raises:
            ResultsError: The directory holds something else, or cannot be written.
        """
        saved.write(self, Path(out), force=force)
        if report:
            self.report(Path(out) / "report.html", mark=mark)
        return Path(out)

    @classmethod
    def load(cls, folder: str | Path) -> Survey:
        """Read what `save` wrote; the adapters are not needed.

        Raises:
            ResultsError: The directory holds no survey, or it cannot be read.
        """
        tables, about, merge = saved.read(Path(folder))
        return cls(tables, about, merge)

    def report(self, path: str | Path, *, mark: str = "") -> Path:
        """Write the report: one HTML file that opens offline.

        Args:
            path: The file.
            mark: The adapter that figures and tables mark.

        Raises:
            ResultsError: The file cannot be written.
            UnknownNameError: No adapter is called so.
        """
        from deltaw.reports.survey import write_survey

        if mark:
            self.check_name(mark)
        return write_survey(self, Path(path), mark)
