"""The base of a study: a small Llama and its tokenizer, trained from scratch on the source domain, or the user's own.

A trained base is cached by content: the training text, the plan's numbers and the libraries' versions are its key, so
that later studies share it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from deltaw.errors import OptionError
from deltaw.files import cache_directory
from deltaw.measurement.versions import versions
from deltaw.study.domains import Text
from deltaw.study.extra import require
from deltaw.study.plan import BaseSpec, Training
from deltaw.study.tokens import packed, train_tokenizer
from deltaw.study.training import stepping, train
from deltaw.study.workspace import LIBRARIES, finishing, key, write_json


def default_cache() -> Path:
    """Where bases are kept: `$XDG_CACHE_HOME/deltaw/study`, or under `~/.cache`."""
    return cache_directory() / "study"


def text_digest(documents: Sequence[Text]) -> str:
    """A digest of the documents, in order."""
    digest = hashlib.sha256()
    for d in documents:
        digest.update(f"{d.prompt}\0{d.text}\0".encode())
    return digest.hexdigest()


def trained_base(
    spec: BaseSpec,
    training: Training,
    documents: Sequence[Text],
    cache: Path,
    device: str,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The directory of a base trained from scratch, from the cache if it is there.

    Args:
        spec: Its shape and its training.
        training: Of the study: the length of a sequence, and the precision.
        documents: The source domain's training documents.
        cache: Where bases are kept.
        device: Where to train.
        progress: Called with the step and the number of steps.
    """
    require("transformers", "tokenizers", "accelerate")
    from filelock import FileLock

    kind = device.partition(":")[0]
    parts = (
        dataclasses.asdict(spec),
        training.length,
        training.precision,
        text_digest(documents),
        versions(*LIBRARIES),
        kind,
    )
    out = cache / f"base-{key(*parts)}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{out.name}.lock"):
        if not out.exists():
            with finishing(out) as folder:
                _train(spec, training, documents, folder, device, progress)
    return out


def _train(
    spec: BaseSpec,
    training: Training,
    documents: Sequence[Text],
    folder: Path,
    device: str,
    progress: Callable[[int, int], None] | None,
) -> None:
    import transformers

    tokenizer = train_tokenizer(documents, spec.vocabulary)
    blocks = packed(tokenizer, documents, training.length)
    transformers.set_seed(spec.seed)
    model = transformers.LlamaForCausalLM(llama_config(spec, training.length, len(tokenizer)))
    threads = torch.get_num_threads()
    torch.set_num_threads(spec.threads)
    try:
        losses = train(
            model,
            blocks,
            workdir=folder,
            steps=spec.steps,
            batch=spec.batch,
            learning_rate=spec.learning_rate,
            schedule="cosine",
            warmup=spec.warmup,
            weight_decay=0.1,
            seed=spec.seed,
            precision=training.precision,
            device=device,
            callbacks=[stepping(progress)] if progress else [],
        )
    finally:
        torch.set_num_threads(threads)
    model.cpu().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    about = {"spec": dataclasses.asdict(spec), "tokens": spec.steps * spec.batch * training.length, "losses": losses}
    write_json(folder / "training.json", about)


def llama_config(spec: BaseSpec, length: int, vocabulary: int) -> Any:
    """The small Llama's configuration, for twice the trained length, so that samples fit.

    Raises:
        OptionError: The heads do not fit the width.
    """
    import transformers

    if spec.hidden % spec.heads or spec.hidden // spec.heads % 2:
        raise OptionError(
            f"[base] hidden = {spec.hidden}, heads = {spec.heads}: expected an even number of dimensions for each head"
        )
    return transformers.LlamaConfig(
        hidden_size=spec.hidden,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.heads,
        intermediate_size=spec.intermediate,
        vocab_size=vocabulary,
        max_position_embeddings=2 * length,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
