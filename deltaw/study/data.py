"""The data of one study, prepared once: the base, token blocks of every domain, held-out problems, and their counts.

data/about.json                      counts per domain, the base, the key of all this
data/<domain>-train.safetensors      token blocks
data/<domain>-held_out.safetensors
data/<domain>-held_out.json          held-out documents, to sample from and to solve
data/<domain>-activations.safetensors   what the base's matrices meet on the domain
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deltaw.errors import ResultsError
from deltaw.measurement.versions import versions
from deltaw.study.arms import open_tokenizer
from deltaw.study.base import text_digest, trained_base
from deltaw.study.domains import Corpus, FileCorpus, PackageCorpus, ProblemCorpus, Text
from deltaw.study.plan import Domain, StudyPlan
from deltaw.study.splits import Split, split
from deltaw.study.tokens import Blocks, packed, prompted
from deltaw.study.workspace import finishing, key, read_json, write_json
from deltaw.types import JsonValue

KEPT_DOCUMENTS = 200  # held-out documents kept as text
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Data:
    """A study's prepared data, on disk.

    Attributes:
        folder: Where it lies.
        base: The base's directory, or its Hub id.
        about: Per domain: documents, tokens (positions, padding too), what was dropped, the shares of the training
            positions that hold text and that are learned from.
        key: Equal for equal content.
    """

    folder: Path
    base: str
    about: Mapping[str, Mapping[str, JsonValue]]
    key: str

    def train(self, domain: str) -> Blocks:
        """The training blocks of a domain."""
        return Blocks.load(self.folder / f"{domain}-train.safetensors")

    def held_out(self, domain: str) -> Blocks:
        """The held-out blocks of a domain."""
        return Blocks.load(self.folder / f"{domain}-held_out.safetensors")

    def activations(self, domain: str) -> Path:
        """Where what the base's matrices meet on a domain lies, see `deltaw.study.moments`."""
        return self.folder / f"{domain}-activations.safetensors"

    def documents(self, domain: str) -> list[Text]:
        """Some held-out documents of a domain."""
        return [Text(**d) for d in read_json(self.folder / f"{domain}-held_out.json")]


def prepare_data(plan: StudyPlan, out: Path, cache: Path, device: str, report: Report) -> Data:
    """Read, split and tokenise the plan's domains, and train its base; what is there already is kept.

    Args:
        plan: The plan.
        out: The study's directory.
        cache: Of bases.
        device: Where a base is trained.
        report: Called with a stage, what is done of it, and its size.

    Raises:
        DeltaWError: A domain or the base cannot be used.
        ResultsError: The directory holds the data of another plan.
    """
    folder = out / "data"
    wanted = _wanted(plan, device)
    if not folder.exists():
        with finishing(folder) as fresh:
            _prepare(plan, fresh, cache, device, report, wanted)
    about = read_json(folder / "about.json")
    if about["wanted"] != wanted:
        raise ResultsError(
            f"{out}: holds a study of other data, of another device or of other versions of the installed packages; "
            "choose another --out, or --fresh to discard it"
        )
    base = about["base"] if plan.base.model else str((folder / "base").resolve())
    return Data(folder, base, about["domains"], about["key"])


def _wanted(plan: StudyPlan, device: str) -> str:
    """A key of all that decides the data, without reading it."""
    files = [f for d in (plan.source, *plan.targets) for f in d.files]
    if plan.base.model and Path(plan.base.model).is_dir():
        files += sorted(str(p) for p in Path(plan.base.model).iterdir() if p.is_file())
    stamps = [(f, Path(f).stat().st_size, Path(f).stat().st_mtime_ns) for f in files if Path(f).exists()]
    packages = versions(
        "torch", "numpy", "scipy", "pandas", "matplotlib", "transformers", "sympy", "tokenizers", "reasoning-gym"
    )
    domains = [asdict(dataclasses.replace(d, arms=())) for d in (plan.source, *plan.targets)]
    return key(domains, asdict(plan.base), plan.training.length, plan.held_out, stamps, packages, sys.version, device)


def _prepare(plan: StudyPlan, folder: Path, cache: Path, device: str, report: Report, wanted: str) -> None:
    domains = (plan.source, *plan.targets)
    splits: dict[str, Split] = {}
    for i, domain in enumerate(domains):
        report(f"reading {domain.name}", i, len(domains))
        splits[domain.name] = split(_corpus(domain), domain.characters, plan.held_out)
    if plan.base.model:
        base = str(Path(plan.base.model).resolve()) if Path(plan.base.model).is_dir() else plan.base.model
    else:
        trained = trained_base(
            plan.base,
            plan.training,
            splits[plan.source.name].train,
            cache,
            device,
            lambda done, total: report("training the base", done, total),
        )
        base = "base"
        # A copy, so that results stand on their own; a link where the disk allows it, for the weights never change.
        _link_tree(trained, folder / base)
    tokenizer = open_tokenizer(folder / base if base == "base" else base)
    report("tokenising", 0, len(domains))
    about = {d.name: _blocks(d, splits[d.name], tokenizer, plan, folder) for d in domains}
    digests = {name: text_digest([*s.train, *s.held_out]) for name, s in splits.items()}
    write_json(folder / "about.json", {"wanted": wanted, "key": key(digests, wanted), "base": base, "domains": about})


def _link_tree(source: Path, out: Path) -> None:
    import shutil

    def link(a: str, b: str) -> str:
        try:
            Path(b).hardlink_to(a)
        except OSError:
            shutil.copy2(a, b)
        return b

    shutil.copytree(source, out, copy_function=link)


def _corpus(domain: Domain) -> Corpus:
    if domain.corpus == "files":
        return FileCorpus(domain.files)
    if domain.corpus == "maths":
        return ProblemCorpus(domain.per_template)
    return PackageCorpus(domain.corpus)


def _blocks(domain: Domain, found: Split, tokenizer: Any, plan: StudyPlan, folder: Path) -> dict[str, JsonValue]:
    cut = packed if domain.regime == "pretraining" else prompted
    length = plan.training.length
    train = cut(tokenizer, found.train, length)
    held_out = cut(tokenizer, found.held_out, length, plan.scores.tokens)
    train.save(folder / f"{domain.name}-train.safetensors")
    held_out.save(folder / f"{domain.name}-held_out.safetensors")
    kept = [dataclasses.asdict(d) for d in found.held_out[:KEPT_DOCUMENTS]]
    write_json(folder / f"{domain.name}-held_out.json", kept)
    return {
        **found.about,
        "corpus": domain.corpus,
        "regime": domain.regime,
        "train_tokens": train.input_ids.numel(),
        "held_out_tokens": held_out.input_ids.numel(),
        "held_out_tokens_scored": held_out.learned,
        "train_dropped_too_long": train.dropped_too_long,
        "held_out_dropped_too_long": held_out.dropped_too_long,
        # Runs are matched by positions (`tokens`), which are equal for all seeds; a block with one prompt has padding.
        "text_share": train.text / train.input_ids.numel(),
        "learned_share": train.learned / train.input_ids.numel(),
    }
