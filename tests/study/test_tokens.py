from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deltaw.errors import OptionError
from deltaw.study.domains import Text
from deltaw.study.tokens import END, IGNORED, Blocks, encode, packed, prompted, train_tokenizer


def test_text_comes_back(documents: list[Text]) -> None:
    tokenizer = train_tokenizer(documents, 400)
    strange = "naïve  Δσ\n\ttabs & 数"
    for text in (documents[0].text, strange):
        (ids,) = encode(tokenizer, [text])
        assert tokenizer.decode(ids) == text
    assert len(tokenizer) <= 400


def test_packed_is_the_documents_end_to_end(documents: list[Text]) -> None:
    tokenizer = train_tokenizer(documents, 400)
    blocks = packed(tokenizer, documents, 32)
    whole = END.join(d.text for d in documents) + END
    text = tokenizer.decode(blocks.input_ids.flatten())
    assert whole.startswith(text)
    assert len(whole) - len(text) < 32 * 20
    assert torch.equal(blocks.input_ids, blocks.labels)
    assert blocks.learned == len(blocks) * 31
    assert blocks.text == len(blocks) * 32
    assert len(packed(tokenizer, documents, 32, tokens=100)) == 3


def test_prompted_learns_the_completion_alone(documents: list[Text]) -> None:
    tokenizer = train_tokenizer(documents, 400)
    asked = [Text("the value", "matrix of ", "x"), Text("a " * 400, "too long ")]
    blocks = prompted(tokenizer, asked, 48)
    assert len(blocks) == 1
    assert blocks.dropped_too_long == 1
    (held, prompt) = (len(encode(tokenizer, [t])[0]) for t in ("the value", "matrix of "))
    assert (blocks.text, blocks.learned) == (prompt + held + 1, held + 1)
    learned = blocks.labels[0][blocks.labels[0] != IGNORED]
    assert tokenizer.decode(learned) == "the value" + END
    first = int((blocks.labels[0] != IGNORED).nonzero()[0])
    assert tokenizer.decode(blocks.input_ids[0, :first]) == "matrix of "
    assert tokenizer.decode(blocks.input_ids[0, first + len(learned) :]) == END * (48 - first - len(learned))


def test_too_little_text_is_refused(documents: list[Text]) -> None:
    tokenizer = train_tokenizer(documents, 400)
    with pytest.raises(OptionError, match="at least one block of 4096"):
        packed(tokenizer, documents[:1], 4096)
    with pytest.raises(OptionError, match="fits in 2 tokens"):
        prompted(tokenizer, documents[:1], 2)


def test_blocks_are_saved_and_cut(tmp_path: Path) -> None:
    ids = torch.arange(40).reshape(10, 4)
    blocks = Blocks(ids, torch.where(ids % 2 == 0, ids, IGNORED))
    blocks.save(tmp_path / "b.safetensors")
    again = Blocks.load(tmp_path / "b.safetensors")
    assert torch.equal(again.input_ids, ids)
    assert torch.equal(again.labels, blocks.labels)
    assert len(again.first(9)) == 2
    assert len(again.first(1)) == 1
    assert blocks.learned == 10
    assert torch.equal(blocks[3]["labels"], blocks.labels[3])
