from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deltaw.study import arms, scores
from deltaw.study.domains import ProblemCorpus, Text
from deltaw.study.tokens import IGNORED, Blocks, encode, train_tokenizer


@pytest.fixture
def model(base: Path):  # type: ignore[no-untyped-def]
    with arms.quiet():
        return arms.open_base(base).eval()


def test_loss_is_the_mean_over_learned_tokens(model) -> None:  # type: ignore[no-untyped-def]
    ids = torch.randint(0, 50, (5, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[1, :7] = IGNORED
    labels[4] = IGNORED
    total, count = 0.0, 0
    for row, wanted in zip(ids, labels, strict=True):
        p = model(input_ids=row[None]).logits[0].detach().double().log_softmax(-1)
        for i in range(11):
            if wanted[i + 1] != IGNORED:
                total -= float(p[i, wanted[i + 1]])
                count += 1
    for batch in (1, 2, 5):
        assert scores.loss(model, Blocks(ids, labels), batch) == pytest.approx(total / count, rel=1e-6)


def test_normalised_is_a_probability() -> None:
    assert scores.normalised(0) == 1
    assert scores.normalised(math.log(50)) == pytest.approx(1 / 50)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 6 x 7 = 42\n#### 42", "42"),
        ("#### 42\nQuestion: next #### 43", "42"),
        ("####  -3.5 ", "-3.5"),
        ("42", None),
        ("####", None),
        ("#### \n", None),
    ],
)
def test_the_answer_stands_behind_the_mark(text: str, answer: str | None) -> None:
    assert scores.answer_of(text) == answer


def test_accuracy_counts_exact_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [Text(f"#### {a}", f"p{i}", a) for i, a in enumerate(["1", "2", "3", "4"])]
    completions = ["#### 1", "#### 2 apples", "so 3", "x\n#### 4\n"]
    monkeypatch.setattr(scores, "generate", lambda *_: completions)
    monkeypatch.setattr(scores, "encode", lambda _, texts: [[0]] * len(texts))
    assert scores.accuracy(None, None, problems) == 0.5


def test_the_reference_solutions_are_right_answers(documents: list[Text]) -> None:
    """However long they are: what writes them, within the limit that it is given, has every answer."""
    corpus = ProblemCorpus(2)
    problems = [d for origin in corpus.origins() for d in corpus.read(origin)]
    tokenizer = train_tokenizer(documents, 400)
    scored = scores.problems_of(tokenizer, problems, 200, 384)
    assert 20 < len(scored) <= 200
    assert all(d.answer for d in scored)
    written = iter(scored)

    class Reference:
        device = torch.device("cpu")

        def generate(self, input_ids: torch.Tensor, max_new_tokens: int, **_: object) -> torch.Tensor:
            end = tokenizer.eos_token_id
            rows = [encode(tokenizer, [next(written).text])[0][:max_new_tokens] for _ in input_ids]
            width = max(map(len, rows))
            return torch.cat([input_ids, torch.tensor([r + [end] * (width - len(r)) for r in rows])], dim=1)

    assert scores.accuracy(Reference(), tokenizer, scored) == 1


def test_greedy_completions_do_not_depend_on_their_neighbours(model, base: Path) -> None:  # type: ignore[no-untyped-def]
    """Shorter prompts are padded on the left, and must not notice."""
    tokenizer = arms.open_tokenizer(base)
    prompts = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16]]
    together = scores.generate(model, tokenizer, prompts, 6)
    assert together == [scores.generate(model, tokenizer, [p], 6)[0] for p in prompts]


def test_diversity_counts_different_samples(model, base: Path) -> None:  # type: ignore[no-untyped-def]
    tokenizer = arms.open_tokenizer(base)
    torch.manual_seed(5)
    found = [scores.diversity(model, tokenizer, [[5, 6], [7]], 12, t, 4) for t in (0.2, 0.2, 1e-6)]
    assert found[0] == found[1]  # its own seed
    assert 1 < found[0] <= 12
    assert found[2] == 1  # nearly greedy: all the same


def test_prompts_are_the_documents_own_or_their_beginning(base: Path) -> None:
    tokenizer = arms.open_tokenizer(base)
    long = "the value of a matrix " * 40
    found = scores.prompts_of(tokenizer, [Text(long), Text("x", "Question: why?")], 2)
    assert len(found[0]) == scores.PROMPT_TOKENS
    assert long.startswith(tokenizer.decode(found[0]))
    assert tokenizer.decode(found[1]) == "Question: why?"


def test_a_tokenizer_without_an_end_is_refused(model) -> None:  # type: ignore[no-untyped-def]
    from deltaw.errors import OptionError

    with pytest.raises(OptionError, match="no end-of-text token"):
        scores.generate(model, SimpleNamespace(eos_token_id=None), [[1]], 2)
