"""What a model has learned and forgotten: held-out losses, exact matches, and how varied its samples are.

Learning is measured on the target domain, retention on the source. A loss (nats per token) is also given as its
normalised score exp(−loss), the geometric mean of the probability of the right token: 0 to 1, higher is better. Exact
matches and samples follow Biderman et al. 2024 (unique completions out of 50).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from deltaw.study.domains import Text
from deltaw.study.tokens import IGNORED, Blocks, encode, end_of, fitting

PROMPT_TOKENS = 32  # of a text that has no prompt: how much of it a sample continues
SPARE = 8  # tokens a solution may be longer than the longest reference: its end, and other ways to cut a word


def normalised(loss: float) -> float:
    """exp(−loss): the geometric mean probability of the right token."""
    return math.exp(-loss)


@torch.no_grad()
def loss(model: Any, blocks: Blocks, batch: int) -> float:
    """Mean negative log-likelihood of the learned tokens, in nats; sums run in float64."""
    total, count = 0.0, 0
    for start in range(0, len(blocks), batch):
        ids = blocks.input_ids[start : start + batch].to(model.device)
        labels = blocks.labels[start : start + batch, 1:].to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        each = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
        )
        total += float(each.double().sum())
        count += int((labels != IGNORED).sum())
    return total / count


@torch.no_grad()
def accuracy(model: Any, tokenizer: Any, problems: Sequence[Text]) -> float:
    """Share of problems whose greedy completion ends in the exact answer (`#### 42`, as in GSM8K).

    The limit of a completion follows from the reference solutions, and is no option: a lower one would cut every
    whole solution before its answer. It is seldom reached, for generation stops at the end-of-text tokens.
    """
    new_tokens = max(len(ids) for ids in encode(tokenizer, [p.text for p in problems])) + SPARE
    prompts = encode(tokenizer, [p.prompt for p in problems])
    texts = generate(model, tokenizer, prompts, new_tokens)
    right = [answer_of(text) == problem.answer for text, problem in zip(texts, problems, strict=True)]
    return sum(right) / len(right)


def problems_of(tokenizer: Any, documents: Sequence[Text], count: int, length: int) -> list[Text]:
    """Documents with an answer that fit in a block, as those that are trained on do: longer ones are never learned."""
    return [d for d, _, _ in fitting(tokenizer, [d for d in documents if d.answer], length)][:count]


def answer_of(text: str) -> str | None:
    """What stands behind the first `####`, to the end of its line."""
    _, mark, rest = text.partition("####")
    return rest.strip().splitlines()[0].strip() if mark and rest.strip() else None


@torch.no_grad()
def diversity(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], samples: int, temperature: float, new_tokens: int
) -> float:
    """Mean number of different completions among `samples` of each prompt."""
    unique = []
    for i, prompt in enumerate(prompts):
        torch.manual_seed(i)  # the same draws for every model: only the model differs
        unique.append(len(set(generate(model, tokenizer, [prompt] * samples, new_tokens, temperature))))
    return sum(unique) / len(unique)


def prompts_of(tokenizer: Any, documents: Sequence[Text], count: int) -> list[list[int]]:
    """Prompts to sample from: the documents' own, or their first tokens."""
    found = encode(tokenizer, [d.prompt or d.text for d in documents[: 4 * count]])
    cut = [ids if d.prompt else ids[:PROMPT_TOKENS] for ids, d in zip(found, documents, strict=False) if ids]
    return cut[:count]


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], new_tokens: int, temperature: float = 0.0
) -> list[str]:
    """Completions of prompts as text: greedy at temperature 0, else sampled."""
    end, width = end_of(tokenizer), max(len(p) for p in prompts)
    ids = torch.tensor([[end] * (width - len(p)) + p for p in prompts])  # a completion starts at the right edge
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    out = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=new_tokens,
        pad_token_id=end,
        eos_token_id=end,
        **sampling,
    )
    return list(tokenizer.batch_decode(out[:, width:], skip_special_tokens=True))
