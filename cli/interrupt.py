"""Ctrl-C and SIGTERM: one line and the exit code, at once, whatever the command does at that moment.

The handlers are the program's own from its first line on. They end the process themselves: an exception would be raised
somewhere inside a library, which may swallow it or die of it, and an SVD in another thread would be waited for.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from deltaw.cli.printable import printable

WORDS = {signal.SIGINT: "Interrupted", signal.SIGTERM: "Terminated"}
SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it
_kept: list[str] = []


def install() -> None:
    """Make Ctrl-C and SIGTERM end this process at once."""
    for number in WORDS:
        signal.signal(number, _on_signal)


def keeps(what: str) -> None:
    """Say what the running command leaves when it is interrupted: a sentence without its full stop."""
    _kept[:] = [printable(what)]


def end(number: int = signal.SIGINT) -> NoReturn:
    """Say what is kept and how to go on, and end the process with what a shell reports for the signal."""
    what = next(iter(_kept), "")
    text = f"{WORDS[signal.Signals(number)]}. {f'{what}; run' if what else 'Run'} the same command again"
    text += " to go on.\n" if what else ".\n"
    with suppress(OSError):  # stderr is closed: the exit code still tells
        os.write(2, f"{SHOW_CURSOR if os.isatty(2) else ''}\n{text}".encode(errors="replace"))
    os._exit(128 + number)


def _on_signal(number: int, frame: FrameType | None) -> NoReturn:
    end(number)
