"""Documents → token blocks of one length: a byte-pair encoding, packed text, and prompts whose answers are learned.

Everything is tokenised before training starts, to int64 tensors in a safetensors file: the training loop then copies
rows, and a worker process reads what it needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from deltaw.errors import OptionError
from deltaw.study.domains import Text
from deltaw.study.extra import require

END = "<|end|>"
IGNORED = -100  # transformers' label of a token that is not learned


@dataclass(frozen=True)
class Blocks(Dataset[dict[str, torch.Tensor]]):
    """Sequences of one length.

    Attributes:
        input_ids: (N, length) int64.
        labels: (N, length) int64: `input_ids` where learned, -100 where not.
        dropped_too_long: Documents that no block could hold; not saved.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    dropped_too_long: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.input_ids[i], "labels": self.labels[i]}

    @property
    def learned(self) -> int:
        """Tokens that count in the loss."""
        return int((self.labels[:, 1:] != IGNORED).sum())

    @property
    def text(self) -> int:
        """Positions that hold text; the rest is padding, which starts behind the last learned token of a block."""
        places = torch.arange(1, self.labels.shape[1] + 1)
        return int(((self.labels != IGNORED) * places).amax(dim=1).sum())

    def first(self, tokens: int) -> Blocks:
        """The leading blocks that hold about that many tokens, at least one block."""
        n = max(1, tokens // self.input_ids.shape[1])
        return Blocks(self.input_ids[:n], self.labels[:n])

    def save(self, path: Path) -> None:
        """Write both tensors as safetensors."""
        from safetensors.torch import save_file

        save_file({"input_ids": self.input_ids.contiguous(), "labels": self.labels.contiguous()}, path)

    @classmethod
    def load(cls, path: Path) -> Blocks:
        """Read what `save` wrote."""
        from safetensors.torch import load_file

        return cls(**load_file(path))


def train_tokenizer(documents: Iterable[Text], vocabulary: int) -> Any:
    """A byte-level BPE (Sennrich et al. 2016) trained on the documents, as a transformers tokenizer."""
    require("tokenizers", "transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((d.text for d in documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )


def end_of(tokenizer: Any) -> int:
    """The token that ends a document.

    Raises:
        OptionError: The tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise OptionError("the base's tokenizer has no end-of-text token; add one to its tokenizer_config.json")
    return int(tokenizer.eos_token_id)


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts, without special tokens."""
    # A whole corpus at a time is longer than any context; that is what packing is for, so no warning about it.
    return list(tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]) if texts else []


def packed(tokenizer: Any, documents: Sequence[Text], length: int, tokens: int | None = None) -> Blocks:
    """Continued pretraining: documents end to end, an end-of-text token behind each, cut to blocks.

    Args:
        tokenizer: A transformers tokenizer.
        documents: What to encode; prompts count as text.
        length: Tokens of a block.
        tokens: Blocks to keep, in tokens; all without it.

    Raises:
        OptionError: The documents do not fill one block.
    """
    end = end_of(tokenizer)
    encoded = encode(tokenizer, [d.prompt + d.text for d in documents])
    stream = [token for ids in encoded for token in (*ids, end)]
    count = min(len(stream), tokens or len(stream)) // length
    if not count:
        raise OptionError(f"the text has {len(stream)} tokens; expected at least one block of {length}: give more text")
    ids = torch.tensor(stream[: count * length], dtype=torch.int64).reshape(count, length)
    return Blocks(ids, ids.clone())


def fitting(tokenizer: Any, documents: Sequence[Text], length: int) -> list[tuple[Text, list[int], list[int]]]:
    """The documents that fit in a block with their end-of-text token, and the tokens of prompt and completion."""
    prompts = encode(tokenizer, [d.prompt for d in documents])
    texts = encode(tokenizer, [d.text for d in documents])
    return [(d, p, t) for d, p, t in zip(documents, prompts, texts, strict=True) if len(p) + len(t) < length]


def prompted(tokenizer: Any, documents: Sequence[Text], length: int, tokens: int | None = None) -> Blocks:
    """Instruction tuning: one prompt and its completion to a block; only the completion is learned.

    What does not fit in a block is left out, and counted. Padding is on the right, where causal attention never looks
    back on it.

    Raises:
        OptionError: No document fits.
    """
    end = end_of(tokenizer)
    found = fitting(tokenizer, documents, length)
    kept = found[: None if tokens is None else max(1, tokens // length)]
    if not kept:
        raise OptionError(f"no prompt with its completion fits in {length} tokens; choose a larger [training] length")
    ids = torch.full((len(kept), length), end, dtype=torch.int64)
    labels = torch.full((len(kept), length), IGNORED, dtype=torch.int64)
    for row, (_, prompt, text) in enumerate(kept):
        whole = torch.tensor([*prompt, *text, end])
        ids[row, : len(whole)] = whole
        labels[row, len(prompt) : len(whole)] = whole[len(prompt) :]
    return Blocks(ids, labels, len(documents) - len(found))
