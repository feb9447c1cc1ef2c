"""Runs in a tree of directories: their weights or their analyses, and what beside them says how they were made.

A run is a directory with an adapter (`adapter_config.json`), with a model (`config.json` and weights), or with what
`deltaw analyze` wrote. What is known of it comes from `adapter_config.json`, from what the Trainer leaves
(`trainer_state.json`, `training_args.bin`, the card `README.md`), from evaluation files, and from `run.json` of a
study. Nothing is executed: `training_args.bin` is a pickle, and is read for its plain values only.
"""

from __future__ import annotations

import filecmp
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from deltaw.checkpoints.pickles import read_attributes
from deltaw.comparison.evaluations import Evaluation
from deltaw.comparison.evaluations.reading import evaluation_files, read_file
from deltaw.documents import Document, is_number, read_object, read_text
from deltaw.errors import DeltaWError, ManifestError
from deltaw.types import OptionValue, is_option_value

WEIGHTS = re.compile(r"^(adapter_model|model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)$")
CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")
STEP = re.compile(r"^step-(\d+)$")
SETTING = re.compile(
    r"^- (learning_rate|seed|train_batch_size|num_epochs|optimizer|lr_scheduler_type): (\S[^\n]*)$", re.M
)
NOT_RUNS = re.compile(r"^(\.(?!eval_results$)|wandb$|__pycache__$|figures$|node_modules$)")
ARGUMENTS_FILE = "training_args.bin"
ARGUMENTS = {  # of a Trainer, and their names in its card
    "seed": "seed",
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "per_device_train_batch_size": "train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "num_train_epochs": "num_epochs",
    "max_steps": "max_steps",
    "optim": "optimizer",
    "lr_scheduler_type": "lr_scheduler_type",
}
ADAPTER = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}


@dataclass(frozen=True)
class FoundRun:
    """One run, or one saved point of it.

    Attributes:
        folder: Its weights, or its analysis.
        name: Its path below the directory that was searched.
        analysed: Whether the folder is what `analyze` wrote.
        method: `lora`, `dora`, `full`, …; empty if it is not known.
        base: What it was trained from, as written; empty if it is not known.
        group: What its replicates share by name; empty if it is not known.
        seed, step, tokens: None where nothing says it.
        hyperparameters, scores: What was found.
        evaluations: Files with its scores.
        unread: Why a file that may say more could not be read; empty if all could.
    """

    folder: Path
    name: str
    analysed: bool = False
    method: str = ""
    base: str = ""
    group: str = ""
    seed: int | None = None
    step: int | None = None
    tokens: int | None = None
    hyperparameters: Mapping[str, OptionValue] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    evaluations: Sequence[Evaluation] = ()
    unread: str = ""


def find_runs(roots: Sequence[Path]) -> list[FoundRun]:
    """Every run below some directories, in the order of their paths.

    Raises:
        ManifestError: A directory does not exist, or a file in it that is to be read cannot be.
    """
    for root in roots:
        if not root.is_dir():
            raise ManifestError(f"{root}: no such directory; give one with runs in it")
    folders = {f: root for root in roots for f in _folders(root)}  # a folder below two roots is one run
    analysed = {_analysed_weights(f) for f in folders if _is_analysis(f)}
    folders = {f: root for f, root in folders.items() if f.resolve() not in analysed and not _is_copy(f, folders)}
    evaluations = _by_folder([e for root in roots for e in _evaluations(root)], list(folders))
    return [_run(f, root, evaluations.get(f, [])) for f, root in folders.items()]


def _folders(root: Path) -> Iterator[Path]:
    for at, below, files in os.walk(root):
        folder = Path(at)
        if "comparison.json" in files:  # what compare wrote: its analyses are of runs that lie elsewhere
            below.clear()
        elif "analysis.json" in files:
            below.clear()
            yield folder
        else:
            below[:] = sorted(name for name in below if not NOT_RUNS.search(name))
            if "adapter_config.json" in files or ("config.json" in files and any(map(WEIGHTS.match, files))):
                yield folder


def _is_analysis(folder: Path) -> bool:
    return (folder / "analysis.json").is_file()


def _analysed_weights(folder: Path) -> Path:
    return Path(read_object(folder / "analysis.json", error=ManifestError).inner("ft").text("path")).resolve()


def _is_copy(folder: Path, folders: Mapping[Path, Path]) -> bool:
    """Whether this is a Trainer's last checkpoint, and the same weights lie above it as the run's result."""
    if not CHECKPOINT.match(folder.name) or folder.parent not in folders:
        return False
    files = [p for p in folder.iterdir() if WEIGHTS.match(p.name)]
    above = [folder.parent / p.name for p in files]
    return bool(files) and all(
        b.is_file() and filecmp.cmp(a, b, shallow=False) for a, b in zip(files, above, strict=True)
    )


def _evaluations(root: Path) -> Iterator[Evaluation]:
    for path in evaluation_files(root):
        if not any((folder / "analysis.json").is_file() for folder in path.parents if folder != path):
            yield read_file(path)


def _by_folder(found: Sequence[Evaluation], folders: Sequence[Path]) -> dict[Path, list[Evaluation]]:
    """The evaluations of each run: in its directory, or of a model by its path."""
    out: dict[Path, list[Evaluation]] = {}
    for evaluation in found:
        inside = [f for f in folders if f in Path(evaluation.source).parents]
        named = [f for f in folders if _is_model(evaluation.model, f)]
        for folder in named[:1] or sorted(inside, key=lambda f: len(f.parts))[-1:]:
            out.setdefault(folder, []).append(evaluation)
    return out


def _is_model(model: str, folder: Path) -> bool:
    """Whether a model's name in an evaluation is a run's path: as it is, or its last two parts."""
    if not model:
        return False
    parts = Path(model).parts
    return (
        parts == folder.parts
        or Path(model).resolve() == folder.resolve()
        or (len(parts) >= 2 and folder.parts[-2:] == parts[-2:])
    )


def _run(folder: Path, root: Path, evaluations: Sequence[Evaluation]) -> FoundRun:
    """What is known of one run."""
    name = folder.relative_to(root).as_posix() if folder != root else root.resolve().name
    if _is_analysis(folder):
        found = _of_study(folder, name) or FoundRun(folder, name, analysed=True)
        source = read_object(folder / "analysis.json", error=ManifestError).inner("base")
        return replace(found, base=source.text("id") or source.text("path"), evaluations=evaluations)
    of_run = folder.parent if CHECKPOINT.match(folder.name) else folder
    arguments, unread = _arguments(folder if (folder / ARGUMENTS_FILE).is_file() else of_run)
    settings = {**_card(of_run), **_card(folder), **arguments}
    seed = settings.pop("seed", None)
    step, tokens, rate = _trainer(folder)
    if rate is not None:
        settings.setdefault("learning_rate", rate)
    method, base, own = _adapter(folder)
    return FoundRun(
        folder,
        name,
        method=method,
        base=base,
        seed=seed if isinstance(seed, int) else None,
        step=step,
        tokens=tokens,
        hyperparameters={**own, **settings},
        evaluations=evaluations,
        unread=unread,
    )


def _adapter(folder: Path) -> tuple[str, str, dict[str, OptionValue]]:
    """Method, base and hyperparameters of an adapter; of a full model the base that its config names."""
    if not (folder / "adapter_config.json").is_file():
        config = read_object(folder / "config.json", error=ManifestError)
        return "full", config.text("_name_or_path"), {}
    config = read_object(folder / "adapter_config.json", error=ManifestError)
    method = "dora" if config.says("use_dora") else config.text("peft_type", "lora").lower()
    values = {new: config.values[old] for old, new in ADAPTER.items() if is_number(config.values.get(old))}
    return method, config.text("base_model_name_or_path"), {k: v for k, v in values.items() if is_option_value(v)}


def _trainer(folder: Path) -> tuple[int | None, int | None, float | None]:
    """Step, tokens and peak learning rate of a Trainer's run; None for what its state does not say."""
    path = folder / "trainer_state.json"
    if not path.is_file():
        named = CHECKPOINT.match(folder.name)
        return (int(named[1]) if named else None), None, None
    state = read_object(path, error=ManifestError)
    tokens = state.whole("num_input_tokens_seen", 0)
    rates = [e.number("learning_rate") for e in state.inners("log_history") if "learning_rate" in e]
    return state.whole("global_step", 0) or None, tokens or None, max(rates, default=None)


def _arguments(folder: Path) -> tuple[dict[str, OptionValue], str]:
    """What a Trainer was asked to do, and why that could not be read."""
    path = folder / ARGUMENTS_FILE
    if not path.is_file():
        return {}, ""
    try:
        values = read_attributes(path)
    except (DeltaWError, OSError) as e:
        return {}, str(e)
    ignored = "num_train_epochs" if is_number(steps := values.get("max_steps")) and steps > 0 else "max_steps"
    return {new: values[old] for old, new in ARGUMENTS.items() if old in values and old != ignored}, ""


def _card(folder: Path) -> dict[str, OptionValue]:
    """The training hyperparameters in the card that the Trainer writes."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    try:
        text = read_text(path, error=ManifestError, largest=1 << 20)
    except DeltaWError:
        return {}  # a card is for people: one that is no text says nothing of the training
    return {key: _value(value.strip()) for key, value in SETTING.findall(text)}


def _value(text: str) -> OptionValue:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _of_study(folder: Path, name: str) -> FoundRun | None:
    """A point of a run of `deltaw study`: `RUN/step-N/results`, with `RUN/run.json`."""
    step = STEP.match(folder.parent.name)
    path = folder.parent.parent / "run.json"
    if step is None or not path.is_file():
        return None
    document = read_object(path, error=ManifestError)
    about = document.inner("described")
    points = [p for p in document.inners("points") if p.whole("step") == int(step[1])]
    if not about or not points:
        return None
    scores = {k: points[0].score(k) for k in ("learning", "retention", "accuracy", "diversity") if k in points[0]}
    return FoundRun(
        folder,
        name,
        analysed=True,
        method=about.text("method"),
        group=about.text("group"),
        seed=about.whole("seed"),
        step=int(step[1]),
        tokens=points[0].whole("tokens"),
        hyperparameters=_options(about.inner("hyperparameters")),
        scores=scores,
    )


def _options(found: Document) -> dict[str, OptionValue]:
    return {k: v for k, v in found.values.items() if is_option_value(v)}
