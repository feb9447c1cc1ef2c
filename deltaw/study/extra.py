"""The optional dependencies of the study, asked for only when something is about to be trained."""

from __future__ import annotations

from importlib.util import find_spec

from deltaw.errors import MissingExtraError

EXTRA = ("transformers", "peft", "accelerate", "tokenizers", "reasoning_gym")


def require(*modules: str) -> None:
    """Check that the modules of the extra are installed, before any work starts.

    Raises:
        MissingExtraError: One is missing; the message says how to install it.
    """
    missing = [m for m in modules or EXTRA if find_spec(m) is None]
    if missing:
        raise MissingExtraError(
            f"deltaw study needs {', '.join(missing)}, which is not installed; run: pip install 'deltaw[study]'"
        )
