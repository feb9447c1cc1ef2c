"""The plan of a study: which base, which targets, which arms, how long; read from TOML, strictly.

Presets are TOML files beside this one. `StudyPlan.runs` is the list of trainings that follow, one for each target, arm,
learning rate and seed: all that decides the numbers of a run is in the plan.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from deltaw.documents import parse_toml, read_text
from deltaw.errors import OptionError
from deltaw.study.strict import build
from deltaw.types import Cell, JsonValue, OptionValue

PRESETS = ("quick", "standard", "gpu")
METHODS = ("full", "lora", "mora", "peft")
CORPORA = ("docstrings", "code", "maths", "files")
SUFFIXES = (".jsonl", ".md", ".py", ".rst", ".txt")
REGIMES = ("pretraining", "instruction")


@dataclass(frozen=True)
class BaseSpec:
    """`[base]`: a small Llama to train from scratch, or `model`, a directory or Hub id to start from."""

    model: str | None = None
    hidden: int = 96
    layers: int = 3
    heads: int = 4
    intermediate: int = 264
    vocabulary: int = 1024
    steps: int = 1000
    batch: int = 8
    learning_rate: float = 3e-3
    warmup: int = 50
    seed: int = 0
    threads: int = 2


@dataclass(frozen=True)
class Domain:
    """`[source]` or one of `[[targets]]`: a corpus and how it is trained on.

    Attributes:
        name: What results call it.
        corpus: One of `CORPORA`.
        subject: What it is about, if the name does not say: `maths` trained on in two ways are two targets.
        regime: `pretraining` (packed text) or `instruction` (only completions are learned).
        files: For `corpus = "files"`.
        characters: Training text to read; all without it.
        per_template: For `maths`: problems of each template.
        arms: The names of the arms that train on it; all without it.
    """

    name: str
    corpus: str
    regime: str = "pretraining"
    files: tuple[str, ...] = ()
    characters: int | None = None
    per_template: int = 50
    subject: str = ""
    arms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise OptionError(f"domain {self.name!r}: a name is made of letters, digits, dots and dashes")
        _one_of(f"domain {self.name!r}, corpus", self.corpus, CORPORA)
        _one_of(f"domain {self.name!r}, regime", self.regime, REGIMES)
        if (self.corpus == "files") != bool(self.files):
            raise OptionError(f'domain {self.name!r}: `files` goes with corpus = "files", and only with it')


@dataclass(frozen=True)
class Training:
    """`[training]`: the same for every arm.

    Attributes:
        length: Tokens of a sequence.
        batch: Sequences of a step.
        steps: Optimiser steps.
        points: Token budgets at which a run is scored, measured and saved, evenly spaced; the last is the end.
        warmup: Steps of linear warm-up.
        schedule: transformers' name of the learning-rate schedule. Constant after the warm-up by default, so that
            a point in the middle of a run is as good as a shorter run's end.
        precision: `float32`, or `bfloat16` for autocast over float32 weights.
        checkpoints: `all`, `last` or `none`: the points whose weights are kept.
    """

    length: int = 256
    batch: int = 4
    steps: int = 100
    points: int = 3
    warmup: int = 10
    schedule: str = "constant_with_warmup"
    precision: str = "float32"
    checkpoints: str = "all"

    def __post_init__(self) -> None:
        _one_of("[training] precision", self.precision, ("float32", "bfloat16"))
        _one_of("[training] checkpoints", self.checkpoints, ("all", "last", "none"))
        if not 0 < self.points <= self.steps:
            raise OptionError(f"[training] points = {self.points}: expected 1 to steps = {self.steps}")

    @property
    def saved_steps(self) -> tuple[int, ...]:
        """The steps after which a run is scored and saved."""
        return tuple(round(self.steps * (i + 1) / self.points) for i in range(self.points))


@dataclass(frozen=True)
class Scoring:
    """`[scores]`: what is evaluated at every saved point.

    Attributes:
        tokens: Held-out tokens of a loss.
        batch: Sequences evaluated together.
        problems: Held-out problems solved greedily (maths only).
        prompts, samples, temperature, new_tokens: Of the sample diversity; 0 prompts for none.
    """

    tokens: int = 16_384
    batch: int = 16
    problems: int = 32
    prompts: int = 2
    samples: int = 50
    temperature: float = 0.2
    new_tokens: int = 24


OPERATIONS = ("without-decay", "denoise", "without-intruders")  # of `deltaw edit`: what may be taken out of an update


@dataclass(frozen=True)
class Rewriting:
    """`[rewriting]`, the optional last step: the end of each run, written again with a part of its update, is scored.

    Attributes:
        ranks: `extract` it as adapters of these ranks.
        edits: Of full checkpoints, what `edit` takes out, each by itself: of `OPERATIONS`.
        arms: The names of the arms whose runs are written again; all without it.
    """

    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    edits: tuple[str, ...] = ("denoise", "without-intruders")
    arms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for operation in self.edits:
            _one_of("[rewriting] edits", operation, OPERATIONS)
        if wrong := [rank for rank in self.ranks if rank < 1]:
            raise OptionError(f"[rewriting] ranks: {wrong[0]} is no rank; expected 1 or more")

    def takes(self, arm: Arm) -> bool:
        """Whether the runs of an arm are written again."""
        return not self.arms or arm.name in self.arms


@dataclass(frozen=True)
class Arm:
    """One of `[[arms]]`: a way to fine-tune, trained at each of its learning rates.

    Attributes:
        name: The group that results call it.
        method: One of `METHODS`; `peft` is any other method of that library, by `options.peft_type`.
        learning_rates: The sweep; every one is kept, together they are the arm's front.
        weight_decay: AdamW's λ (a step shrinks decayed weights by lr·λ).
        attention_dropout: Of the attention's probabilities.
        rank: Of an adapter; for MoRA, of the LoRA with as many parameters.
        alpha: LoRA's α; 2·rank without it.
        dropout: lora_dropout.
        mora_type: 1 or 6.
        options: More of peft's configuration, by its names (`use_dora = true`, `peft_type = "LOHA"`).
    """

    name: str
    method: str
    learning_rates: tuple[float, ...]
    weight_decay: float = 0.0
    attention_dropout: float = 0.0
    rank: int | None = None
    alpha: float | None = None
    dropout: float = 0.05
    mora_type: int = 6
    options: Mapping[str, OptionValue] = field(default_factory=dict)  # whatever a method of peft takes

    def __post_init__(self) -> None:
        _one_of(f"arm {self.name!r}, method", self.method, METHODS)
        if not self.learning_rates:
            raise OptionError(f"arm {self.name!r}: learning_rates is empty; expected at least one")
        if self.method in {"lora", "mora"} and self.rank is None:
            raise OptionError(f"arm {self.name!r}: method {self.method!r} needs a rank")
        if self.method == "peft" and "peft_type" not in self.options:
            raise OptionError(f'arm {self.name!r}: method "peft" needs options.peft_type, such as "LOHA"')

    @property
    def hyperparameters(self) -> dict[str, Cell]:
        """What a comparison may group and explain by."""
        out: dict[str, Cell] = {"weight_decay": self.weight_decay, "attention_dropout": self.attention_dropout}
        if self.method != "full":
            out |= {"rank": self.rank, "dropout": self.dropout}
        if self.method == "lora":
            out["alpha"] = self.lora_alpha
        if self.method == "mora":
            out["mora_type"] = self.mora_type
        return {k: v for k, v in out.items() if v is not None}

    @property
    def lora_alpha(self) -> float:
        """α, 2·rank unless given."""
        assert self.rank is not None
        return self.alpha if self.alpha is not None else 2 * self.rank


TRAINING = {"pretraining": "cpt", "instruction": "ift"}  # the words of the paper, and of `deltaw compare`


@dataclass(frozen=True)
class PlannedRun:
    """One training: an arm on a target, at one learning rate, from one seed."""

    target: Domain
    arm: Arm
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Unique in a plan, and fit for a directory."""
        slug = "".join(c if c.isalnum() or c in "-._=" else "-" for c in self.arm.name.lower())
        return f"{self.target.name}-{slug}-lr{self.learning_rate:g}-s{self.seed}"

    @property
    def described(self) -> dict[str, JsonValue]:
        """What a manifest of `deltaw compare` says of each of its points.

        A group is an arm on a target: its learning rates and tokens are its front. `domain` and `training` keep scores
        of different targets apart.
        """
        settings: dict[str, Cell] = {
            "domain": self.target.subject or self.target.name,
            "training": TRAINING[self.target.regime],
            "learning_rate": self.learning_rate,
            **self.arm.hyperparameters,
        }
        return {
            "group": group_of(self.target.name, self.arm.name),
            "method": self.arm.method,
            "seed": self.seed,
            "hyperparameters": settings,
        }


def group_of(target: str, arm: str) -> str:
    """The name of a group of the comparison."""
    return f"{target}: {arm}"


@dataclass(frozen=True)
class StudyPlan:
    """A study, whole.

    Attributes:
        title: Of the report.
        source: What the base knows, and what may be forgotten.
        targets: What is learned.
        arms: How.
        seeds: Of the replicates.
        threads: torch's threads of one run on a CPU: part of the plan, because they may change the last bit.
        held_out: Characters of held-out text to gather per domain.
        rewriting: What is scored of the runs when they are finished; nothing without it.
    """

    title: str
    source: Domain
    targets: tuple[Domain, ...]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (0, 1)
    base: BaseSpec = field(default_factory=BaseSpec)
    training: Training = field(default_factory=Training)
    scores: Scoring = field(default_factory=Scoring)
    threads: int = 1
    held_out: int = 200_000
    rewriting: Rewriting | None = None

    def __post_init__(self) -> None:
        for what, names in (
            ("arms", [a.name for a in self.arms]),
            ("targets", [t.name for t in self.targets]),
            ("domains", [self.source.name, *(t.name for t in self.targets)]),
            ("runs", [r.name for r in self.runs()]),
        ):
            if not names:
                raise OptionError(f"the plan has no {what}; expected at least one")
            double = sorted({n for n in names if names.count(n) > 1})
            if double:
                raise OptionError(f"the plan has {what} of the same name: {', '.join(double)}; names are unique")
        known = {a.name for a in self.arms}
        chosen = {f"target {target.name!r}": target.arms for target in self.targets}
        for what, arms in (chosen | {"[rewriting]": self.rewriting.arms if self.rewriting else ()}).items():
            if unknown := sorted(set(arms) - known):
                raise OptionError(
                    f"{what}, arms: no arm is named {', '.join(unknown)}; expected some of {', '.join(sorted(known))}"
                )
        if self.rewriting and self.training.checkpoints == "none":
            raise OptionError("[rewriting] needs the runs' last weights; set [training] checkpoints to all or last")

    def runs(self) -> Iterator[PlannedRun]:
        """Every training: seeds outermost, so that an interrupted study has whole replicates first."""
        for seed in self.seeds:
            for target in self.targets:
                for arm in self.arms:
                    if not target.arms or arm.name in target.arms:
                        yield from (PlannedRun(target, arm, rate, seed) for rate in arm.learning_rates)


def load_plan(source: str | Path) -> StudyPlan:
    """A plan from a preset's name or a TOML file.

    Raises:
        OptionError: There is no such preset or file, or it is not a valid plan.
    """
    text, where = _text(source)
    return build(StudyPlan, parse_toml(text, where, error=OptionError))


def _text(source: str | Path) -> tuple[str, str]:
    if str(source) in PRESETS:
        name = f"{source}.toml"
        return files("deltaw.study").joinpath(name).read_text(encoding="utf-8"), f"preset {name}"
    try:
        return read_text(Path(source), error=OptionError), str(source)
    except OptionError as e:
        raise OptionError(f"{e} (expected {', '.join(PRESETS)} or a TOML file)") from e


def customised(
    plan: StudyPlan,
    *,
    source: tuple[str, ...] = (),
    target: tuple[str, ...] = (),
    base: str | None = None,
    seeds: int | None = None,
) -> StudyPlan:
    """A plan with the user's own text, base or number of seeds.

    Args:
        plan: To start from.
        source: Files (or directories of them) to measure retention on, and to train a base from scratch on.
        target: Files or directories to learn; they replace the plan's targets.
        base: A model directory or Hub id.
        seeds: How many.

    Raises:
        OptionError: The files do not make a plan.
    """
    if source:
        plan = dataclasses.replace(plan, source=Domain("source", "files", files=text_files(source)))
    if target:
        target = text_files(target)
        regime = "instruction" if all(f.endswith(".jsonl") for f in target) else "pretraining"
        plan = dataclasses.replace(plan, targets=(Domain("target", "files", regime, files=target),))
    if base is not None:
        plan = dataclasses.replace(plan, base=dataclasses.replace(plan.base, model=base))
    if seeds is not None:
        plan = dataclasses.replace(plan, seeds=tuple(range(seeds)))
    return plan


def text_files(paths: tuple[str, ...]) -> tuple[str, ...]:
    """The files given, and those of known suffixes in the directories given.

    Raises:
        OptionError: A directory has none.
    """
    found: list[str] = []
    for path in map(Path, paths):
        inside = sorted(str(p) for p in path.rglob("*") if p.suffix in SUFFIXES) if path.is_dir() else [str(path)]
        if not inside:
            raise OptionError(f"{path}: no text there; expected files that end in {', '.join(SUFFIXES)}")
        found += inside
    return tuple(found)


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise OptionError(f"{what} = {value!r}: expected one of {', '.join(known)}")
