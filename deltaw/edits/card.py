"""README.md of an adapter: the model card, with the certificate and how to load it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable

from deltaw.edits.extracted import Extraction, percent
from deltaw.tensors.names import kind

NAMED = 200  # modules and tensors that are listed


def card(found: Extraction, base: str, grown: Iterable[str] = ()) -> str:
    """The text of a model card.

    Args:
        found: The certificate.
        base: Path or Hub id of the base.
        grown: Modules whose vocabulary is larger than the base's.
    """
    front = ["---", "library_name: peft", "tags:", "- lora", "- deltaw"]
    if base:
        front.insert(1, f"base_model: {json.dumps(base)}")
    lines = [*front, "---", "", f"# LoRA of {_code(found.ft[0].path)}", "", " ".join(found.sentences()), ""]
    lines += _loading(base, list(grown))
    lines += _kinds(found)
    if found.saved:
        lines += ["## Stored whole", "", *_listed([f"{_code(s.name)}: {s.why}" for s in found.saved]), ""]
    if found.skipped:
        lines += ["## Left out", "", *_listed([_skipped(s.name, s.reason, s.detail) for s in found.skipped]), ""]
    if found.notes:
        lines += ["## Notes", "", *_listed(list(found.notes)), ""]
    if found.command:
        lines += ["## Made by", "", "```sh", found.command, "```", ""]
    return "\n".join(lines)


def _skipped(name: str, reason: str, detail: str) -> str:
    return f"{_code(name)}: {reason}{f' ({detail})' if detail else ''}"


def _loading(base: str, grown: list[str]) -> list[str]:
    resize = ["# its vocabulary grew: first model.resize_token_embeddings(len(tokenizer))"] if grown else []
    return [
        "## How to load it",
        "",
        "```python",
        "from peft import PeftModel",
        "",
        f"# model: {json.dumps(base) if base else 'the base'}, loaded by its own class",
        *resize,
        'model = PeftModel.from_pretrained(model, "path/of/this/adapter")',
        "```",
        "",
    ]


def _kinds(found: Extraction) -> list[str]:
    together: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(found.layers):
        together[kind(row.name.partition("[")[0], 2)].append(i)
    lines = ["## What it keeps", "", "| kind | pairs | ranks | numbers | energy kept, least | relative error, most |"]
    lines.append("|---|---|---|---|---|---|")
    for name, at in sorted(together.items()):
        rows = [found.layers[i] for i in at]
        ranks = [r.rank for r in rows]
        lines.append(
            f"| {name} | {len(rows):,} | {min(ranks)}–{max(ranks)} | {sum(r.parameters for r in rows):,} | "
            f"{percent(min(r.energy_kept for r in rows))} | {max(r.relative_error for r in rows):.2g} |"
        )
    return [*lines, "", "`extraction.csv` has every matrix.", ""]


def _listed(items: list[str]) -> list[str]:
    more = [f"* … and {len(items) - NAMED:,} more"] if len(items) > NAMED else []
    return [f"* {item}" for item in items[:NAMED]] + more


def _code(text: str) -> str:
    """A foreign text as code, in one line."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"
