"""Options that several commands share, and how verbosity reaches the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deltaw.cli.printable import printable, say
from deltaw.errors import OptionError
from deltaw.files import parse_size
from deltaw.results.sources import writable

if TYPE_CHECKING:
    from deltaw.checkpoints import Checkpoint
    from deltaw.results.conditions import Condition

F = TypeVar("F", bound=Callable[..., Any])


GENERIC = frozenset({"model", "pytorch_model", "adapter_model", "consolidated.00"})  # names that say nothing


class Size(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    """A number of bytes: `500MB`, `2GiB`, `8G`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The size in bytes."""
        if isinstance(value, int):
            return value
        try:
            size = parse_size(str(value))
        except OptionError as e:
            self.fail(str(e), param, ctx)
        if size <= 0:
            self.fail(f"{value!r} is no size; expected one like 500MB or 8GB", param, ctx)
        return size


class FilePath(click.Path):
    """A path that can be written in every file of results: not empty, and UTF-8."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        text = str(value)
        if not text.strip():
            self.fail("the path is empty; give . for the working directory", param, ctx)
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail(f"{printable(text)!r} is not UTF-8; choose another name", param, ctx)
        return super().convert(value, param, ctx)


class Names(click.ParamType):  # type: ignore[type-arg]
    """Words separated by commas, each one of a few."""

    name = "names"

    def __init__(self, choices: tuple[str, ...]) -> None:
        self.choices = choices

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """The words."""
        if isinstance(value, tuple):
            return value
        words = tuple(dict.fromkeys(w.strip() for w in str(value).split(",") if w.strip()))
        unknown = [w for w in words if w not in self.choices]
        if unknown or not words:
            self.fail(f"{value!r}: expected some of {', '.join(self.choices)}, separated by commas", param, ctx)
        return words


class Counts(click.ParamType):  # type: ignore[type-arg]
    """Whole numbers above 0, separated by commas."""

    name = "counts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The numbers."""
        if isinstance(value, tuple):
            return value
        words = [w.strip() for w in str(value).split(",") if w.strip()]
        if not words or not all(w.isdecimal() and w.isascii() and int(w) for w in words):
            self.fail(f"{value!r}: expected whole numbers above 0, separated by commas", param, ctx)
        return tuple(map(int, words))


class NumberList(click.ParamType):  # type: ignore[type-arg]
    """Numbers separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """The numbers."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(w) for w in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}: expected numbers separated by commas", param, ctx)


class Expression(click.ParamType):  # type: ignore[type-arg]
    """A condition of `--fail-if`, such as `relative_change.max > 0.5`."""

    name = "expr"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Condition:
        """The condition, parsed."""
        from deltaw.results.conditions import Condition

        if isinstance(value, Condition):
            return value
        try:
            return Condition.parse(str(value))
        except OptionError as e:
            self.fail(str(e), param, ctx)


class _Lines(logging.Handler):
    """Log records as printable lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record), err=True)


def verbosity(function: F) -> F:
    """`-q` and `-v`; the log goes to stderr."""

    def set_level(ctx: click.Context, param: click.Parameter, value: int) -> int:
        if param.name == "verbose":
            ctx.meta["deltaw.verbose"] = value
            logging.basicConfig(handlers=[_Lines()], force=True)
            logging.getLogger("deltaw").setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(value, 2)])
        return value

    function = click.option("-v", "--verbose", count=True, callback=set_level, expose_value=False, help="Say more.")(
        function
    )
    return click.option("-q", "--quiet", is_flag=True, help="No progress, no summary.")(function)


def matching(function: F) -> F:
    """Which matrices there are: `--split-fused`, and what `matching_names` adds."""
    split = click.option("--split-fused", is_flag=True, help="One row per part of a fused tensor (q, k, v; gate, up).")
    return matching_names(split(function))


def matching_names(function: F) -> F:
    """`--include`, `--exclude` and `--rename`."""
    for option in (
        click.option(
            "--rename", multiple=True, metavar="REGEX=TEXT", help="Rewrite FT's names before tensors are paired."
        ),
        click.option("--exclude", multiple=True, metavar="REGEX", help="Leave out tensors whose name matches."),
        click.option("--include", multiple=True, metavar="REGEX", help="Only tensors whose name matches."),
    ):
        function = option(function)
    return function


def choosing(function: F) -> F:
    """The policies of `extract` and `resize`, and the limits within which they choose ranks."""
    for option in (
        click.option(
            "--dtype",
            type=click.Choice(["bfloat16", "float16", "float32"]),
            default="float32",
            show_default=True,
            help="Dtype of the factors.",
        ),
        click.option(
            "--activations",
            type=FilePath(),
            metavar="FILE",
            help="Keep what does most to the inputs of a data set (deltaw activations), and state that error, too.",
        ),
        click.option("--ranks", type=Counts(), default=(), metavar="N,N,…", help="Only these ranks: 8,16,32,64."),
        click.option("--max-rank", type=click.IntRange(min=1), help="The most that any matrix gets."),
        click.option(
            "--parameters",
            type=click.IntRange(min=1),
            help="A budget for the whole adapter, spent where it keeps most energy.",
        ),
        click.option("--above-noise", is_flag=True, help="Keep every direction above the noise edge."),
        click.option(
            "--energy",
            type=click.FloatRange(0, 1, min_open=True),
            help="Keep this share of each matrix's energy above its noise.",
        ),
        click.option("--rank", type=click.IntRange(min=1), help="Keep this many directions of every matrix."),
    ):
        function = option(function)
    return function


def executors(function: F) -> F:
    """`--executor` and `--ray-address`."""
    for option in (
        click.option(
            "--ray-address", metavar="ADDRESS", help="Address of the cluster.  [default: RAY_ADDRESS, or this machine]"
        ),
        click.option(
            "--executor",
            type=click.Choice(["threads", "ray"]),
            default="threads",
            show_default=True,
            help="Where the work is done; ray needs deltaw[ray].",
        ),
    ):
        function = option(function)
    return function


def executing(function: F) -> F:
    """Where the matrices of `extract` and `edit` are worked on, and what becomes of what is there."""
    for option in (
        click.option("--memory", type=Size(), help="Memory budget, like 8GB.  [default: most of what is free]"),
        click.option("--jobs", type=click.IntRange(min=1), help="Matrices at a time.  [default: by cores and memory]"),
        click.option("--force", is_flag=True, help="Overwrite what is in --out."),
        click.option(
            "--resume/--fresh",
            default=True,
            help="Keep or discard what an interrupted run finished.  [default: resume]",
        ),
        click.option(
            "--device",
            default="auto",
            show_default=True,
            metavar="auto|cpu|cuda[:N]|mps",
            help="Where the linear algebra runs.",
        ),
    ):
        function = option(function)
    return function


def inputs(
    base: str | None, ft: str | None, no_base: bool, *, quiet: bool, download: bool = False
) -> tuple[Checkpoint | str | None, str]:
    """BASE and FT; with one argument its base is found, and a line on stderr says which; with `--no-base` it has none.

    Raises:
        UsageError: An argument is missing, or there is one too many.
    """
    if no_base:
        if base is None or ft is not None:
            raise click.UsageError("--no-base takes one argument, the adapter: deltaw analyze --no-base ADAPTER")
        return None, base
    if base is None:
        raise click.UsageError("expected BASE and FT, or FT alone, whose base is then found")
    if ft is not None:
        return base, ft
    from deltaw.measurement.found_base import find_base

    found = find_base(base, download=download)
    if not quiet:
        say(f"base: {found.source} ({found.found_by})", err=True)
    return found, base


def default_out(ft: str, part: str | None = None) -> Path:
    """`deltaw-results/<ft name>`: the directory's or file's name, the directory's where the file's says nothing.

    A part of an analysis has a directory of its own: `<ft name>-part-3-of-16`.
    """
    path = Path(ft)
    if "://" in ft:
        place = PurePosixPath(ft.partition("://")[2].partition("?")[0])
        inner = place.stem in GENERIC and bool(place.parent.name)
        name = place.parent.name if inner else place.stem if place.suffix == ".safetensors" else place.name
    elif path.exists():
        path = path.resolve()
        generic = path.is_file() and path.stem in GENERIC
        name = path.parent.name if generic else path.stem if path.is_file() else path.name
    else:
        name = ft.replace("/", "--")
    name = writable(name) or "ft"
    return Path("deltaw-results") / (name if part is None else f"{name}-part-{part.replace('/', '-of-')}")
