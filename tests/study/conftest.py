"""A study small enough for a test: two kinds of text, a base of a few thousand parameters, seconds for all of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("reasoning_gym")

import torch

from deltaw.study import arms
from deltaw.study.base import llama_config
from deltaw.study.domains import Text
from deltaw.study.plan import Arm, BaseSpec, Domain, Scoring, StudyPlan, Training
from deltaw.study.tokens import Blocks, train_tokenizer

PROSE = "the value of a matrix is returned when both arguments are given and an error is raised if they differ"
CODE = "def return self if else for in range x y = ( ) : [ ] + not None"


def write_text(path: Path, words: str, seed: int, documents: int = 300) -> Path:
    rng = Random(seed)
    texts = [" ".join(rng.choices(words.split(), k=40)) for _ in range(documents)]
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests share a few cores, and the number of threads may change the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("texts")
    return {
        "prose": str(write_text(folder / "prose.txt", PROSE, 1)),
        "code": str(write_text(folder / "code.txt", CODE, 2)),
    }


@pytest.fixture(scope="session")
def documents() -> list[Text]:
    rng = Random(0)
    return [Text(" ".join(rng.choices(PROSE.split(), k=40))) for _ in range(60)]


def blocks(length: int = 32, rows: int = 24, vocabulary: int = 50) -> Blocks:
    ids = torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))
    return Blocks(ids, ids)


def trainer_of(model: Any, out: Path, **options: Any) -> Any:
    """A real Trainer on the CPU: four steps, a checkpoint every two; what it prints is left out."""
    import transformers

    callbacks = options.pop("callbacks", [])
    settings = {
        "output_dir": str(out),
        "max_steps": 4,
        "save_steps": 2,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(**settings | options),
        train_dataset=blocks(),
        data_collator=lambda rows: {k: torch.stack([r[k] for r in rows]) for k in rows[0]},
        callbacks=callbacks,
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    return trainer


SPEC = BaseSpec(hidden=16, layers=2, heads=2, intermediate=24, vocabulary=400, steps=10, batch=4, warmup=2, threads=1)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, documents: list[Text]) -> Path:
    """A Llama of random weights with its tokenizer, as transformers saves it."""
    import transformers

    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer(documents, 400)
    torch.manual_seed(0)
    with arms.quiet():
        transformers.LlamaForCausalLM(llama_config(SPEC, 64, len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


FULL = Arm("full", "full", (1e-2,))
DECAY = Arm("full, decay", "full", (1e-2,), weight_decay=1.0)
LORA = Arm("LoRA r=2", "lora", (3e-2,), rank=2)
DORA = Arm("DoRA r=2", "lora", (3e-2,), rank=2, options={"use_dora": True})
MORA1 = Arm("MoRA type 1", "mora", (3e-2,), rank=2, mora_type=1)
MORA6 = Arm("MoRA type 6", "mora", (3e-2,), rank=2, mora_type=6)


@pytest.fixture
def plan(texts: dict[str, str]) -> StudyPlan:
    """Three arms on text of the user's own and on problems, one seed."""
    return StudyPlan(
        title="Pico",
        source=Domain("prose", "files", files=(texts["prose"],)),
        targets=(
            Domain("code", "files", files=(texts["code"],)),
            Domain("maths", "maths", "instruction", per_template=2),
        ),
        arms=(FULL, LORA, MORA6),
        seeds=(0,),
        base=SPEC,
        training=Training(length=384, batch=2, steps=4, points=2, warmup=1),
        scores=Scoring(tokens=768, batch=4, problems=2, prompts=1, samples=4, new_tokens=4),
    )
