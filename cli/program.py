"""The `deltaw` command, and the boundary behind which every error is one line."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from contextlib import suppress
from typing import Any

import click

from deltaw.cli import interrupt
from deltaw.cli.printable import one_line, printable, say
from deltaw.errors import DeltaWError, OptionError, near

COMMANDS = (
    "analyze",
    "inspect",
    "gather",
    "compare",
    "survey",
    "extract",
    "resize",
    "edit",
    "activations",
    "study",
    "report",
    "verify",
    "metrics",
    "demo",
)


class Commands(click.Group):
    """One file per command, imported when it is asked for, so that `--help` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of use, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of `deltaw.cli.NAME`."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"deltaw.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command, or a usage error that suggests the near ones.

        Raises:
            UsageError: There is no such command.
        """
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            hint = near(name, COMMANDS) or f" There are {', '.join(COMMANDS)}."
            raise click.UsageError(f"no command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; no traceback leaves here unless `-v` asks for it."""  # noqa: DOC501  (click's own)
        try:
            found = super().invoke(ctx)
            sys.stdout.flush()  # a full disk behind a redirection is told here
            return found
        except (click.exceptions.Exit, click.Abort):
            raise
        except click.ClickException as e:  # click repeats arguments, and a shell's * makes them of file names
            e.message = printable(e.message)  # type: ignore[misc]  # final for subclasses, and of this one only
            raise
        except KeyboardInterrupt:
            interrupt.end()
        except OptionError as e:
            _show_traceback(ctx)
            raise click.UsageError(_one_line(e)) from e
        except DeltaWError as e:
            _show_traceback(ctx)
            raise Failure(_one_line(e)) from e
        except BrokenPipeError:
            raise
        except OSError as e:
            _show_traceback(ctx)
            _drop_output()
            where = f"{e.filename}: " if e.filename else "the output cannot be written: "
            raise Failure(one_line(f"{where}{e.strerror or e}")) from e
        except MemoryError as e:
            _show_traceback(ctx)
            raise Failure("out of memory; try --jobs 1, or --memory with a smaller size") from e
        except Exception as e:  # the last boundary: a defect is still one line, and says how to see more
            _show_traceback(ctx)
            raise Failure(f"unexpected {type(e).__name__}: {_one_line(e)} (a defect of deltaw; -v shows where)") from e


class Failure(click.ClickException):
    """Exit code 1: the inputs cannot be used."""

    exit_code = 1


def _drop_output() -> None:
    """Send what is left of stdout nowhere: the interpreter would try to write it once more when it ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(error: BaseException) -> str:
    return one_line(str(error)) or type(error).__name__


def _show_traceback(ctx: click.Context) -> None:
    if ctx.meta.get("deltaw.verbose"):
        say(traceback.format_exc(), err=True)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="deltaw")
def main() -> None:
    """What did fine-tuning change, how much of it is real, how low-rank is it?

    `deltaw analyze BASE FT` measures every weight update between a base and a fine-tuned checkpoint (or adapter) and
    writes tables and a report. `deltaw demo` shows it on a real pair.
    """
