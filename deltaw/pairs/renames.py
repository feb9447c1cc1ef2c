"""Rules that give one name to tensors that libraries call differently: the user's, the known ones, transformers' own.

A rule turns the name of an older or published checkpoint into the one that today's transformers has in memory. Both
sides are renamed, and names that are then equal are the same tensor, if their shapes agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from deltaw.documents import Document, Pattern, compile_pattern
from deltaw.errors import OptionError
from deltaw.tensors.names import unwrap
from deltaw.types import counted

Renamed = Callable[[str], str]


@dataclass(frozen=True)
class Rename:
    """One `--rename`: a regular expression and what is put in its place, as in `re.sub`."""

    pattern: Pattern
    text: str

    @staticmethod
    def parse(given: str) -> Rename:
        """Read `REGEX=TEXT`; the last `=` divides them, since none is in a tensor's name.

        Raises:
            OptionError: There is no `=`, or the left side is not a regular expression.
        """
        regex, equals, text = given.rpartition("=")
        if not equals or not regex:
            raise OptionError(rf"--rename {given!r}: expected REGEX=TEXT, such as '^net\.=model.'")
        where = f"--rename {given!r}"
        pattern = compile_pattern(regex, where, error=OptionError)
        # an unknown group in TEXT shows only where something is replaced
        compile_pattern(f"{regex}|", where, error=OptionError).sub(text, "")
        return Rename(pattern, text)

    def __call__(self, name: str) -> str:
        """The name with every match replaced; below what wrappers add, where the stored name itself has none."""
        for at in (name, unwrap(name)):
            if (found := self.pattern.sub(self.text, at)) != at:
                return found
        return name


# The queries of Meta's and Mistral's own files and of transformers': the same numbers in another order of rows.
META, HUGGING_FACE = re.compile(r"(^|\.)attention\.w[qk]\."), re.compile(r"\.self_attn\.[qk]_proj\.")


def renamed(names: Iterable[str], rules: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """What each name of the fine-tuned side is called after `--rename`, and a note on each rule.

    Raises:
        OptionError: A rule is malformed, or two names become one.
    """
    new = {name: name for name in names}
    notes = []
    for given in rules:
        rule = Rename.parse(given)
        after = {name: rule(at) for name, at in new.items()}
        count = sum(after[name] != at for name, at in new.items())
        notes.append(f"--rename {given}: {counted(count, 'name')} of the fine-tuned side")
        new = after
    native = next((n for n, at in new.items() if rules and META.search(n) and HUGGING_FACE.search(at)), None)
    if native is not None:
        notes.append(
            f"--rename compares {native} with {new[native]}: Meta's and Mistral's own files have the rows of queries "
            "and keys in another order than transformers', and a difference in that order is no update"
        )
    taken: dict[str, str] = {}
    for name, at in new.items() if rules else ():
        if (other := taken.setdefault(at, name)) != name:
            raise OptionError(f"--rename gives {other!r} and {name!r} one name, {at!r}; make the expression narrower")
    return new, tuple(notes)


# Norms of TensorFlow's BERT; weight norm and spectral norm before and after they became parametrisations.
KNOWN = (
    (re.compile(r"((?:^|\.)[^.]*(?:norm|ln)[^.]*)\.gamma$", re.IGNORECASE), r"\1.weight"),
    (re.compile(r"((?:^|\.)[^.]*(?:norm|ln)[^.]*)\.beta$", re.IGNORECASE), r"\1.bias"),
    (re.compile(r"\.weight_g$"), ".parametrizations.weight.original0"),
    (re.compile(r"\.weight_v$"), ".parametrizations.weight.original1"),
    (re.compile(r"\.weight_orig$"), ".parametrizations.weight.original"),
)
# Mixtral's experts, and the experts of one layer wherever they hang.
EXPERTS = (
    (re.compile(r"\.block_sparse_moe\."), ".mlp."),
    (re.compile(r"\.experts\.(\d+)\.w1\."), r".experts.\1.gate_proj."),
    (re.compile(r"\.experts\.(\d+)\.w3\."), r".experts.\1.up_proj."),
    (re.compile(r"\.experts\.(\d+)\.w2\."), r".experts.\1.down_proj."),
)
# The towers of models that see: LLaVA, Gemma 3, Qwen-VL and their relatives, on the Hub and in memory.
TOWERS = (
    (re.compile(r"^(?:model\.)?language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^(?:model\.)?language_model\.(?:model\.)?"), "model.language_model."),
    (re.compile(r"^(vision_tower|vision_model|visual|multi_modal_projector|image_newline)(\.|$)"), r"model.\1\2"),
    (re.compile(r"^(model\.vision_tower)\.vision_model\."), r"\1."),
    (
        re.compile(
            r"^model\.(?!language_model\.|vision|visual\.|multi_modal|image_newline|audio|embed_vision|embed_audio|mm_)"
        ),
        "model.language_model.",
    ),
)


def known(name: str) -> str:
    """The name with the parts replaced that libraries renamed in every model: norms, weight norm, experts."""
    for pattern, text in (*KNOWN, *EXPERTS):
        name = pattern.sub(text, name)
    return name


def towers(name: str) -> str:
    """The name that a model with a language model inside has in memory."""
    name = known(name)
    for pattern, text in TOWERS:
        name = pattern.sub(text, name)
    return name


def has_towers(*configs: Document, names: Iterable[str]) -> bool:
    """Whether one of two checkpoints is a model with a language model inside."""
    return any("text_config" in c or "vision_config" in c for c in configs) or any(
        "language_model." in n for n in names
    )


def suggestion(ft: str, base: str) -> str:
    """The `--rename` that turns a name of the fine-tuned side into the base's: what is left between equal ends."""
    a, b = unwrap(ft).split("."), unwrap(base).split(".")
    if a[-len(b) :] == b and len(a) > len(b):  # one prefix more: whatever else lies behind it is meant, too
        return f"--rename '^{re.escape('.'.join(a[: -len(b)]))}\\.='"
    while len(a) > 1 and len(b) > 1 and a[-1] == b[-1]:
        a.pop(), b.pop()
    start = 0
    while start < min(len(a), len(b)) - 1 and a[start] == b[start]:
        start += 1
    old, new = ".".join(a[start:]), ".".join(b[start:])
    return f"--rename '{'^' if not start else ''}{re.escape(old)}={new}'"
