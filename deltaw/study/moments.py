"""What the base's matrices meet on each domain of a study, from held-out blocks: collected once, used by every run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from deltaw.activations import collect_activations
from deltaw.study import arms
from deltaw.study.data import Data
from deltaw.study.tokens import IGNORED, Blocks

BLOCKS = 48  # of each domain
BATCH = 8  # blocks at a time


def activations(data: Data, domain: str, device: str) -> Path:
    """The file of a domain's activations at the base, collected if it is not there.

    Args:
        data: The prepared data.
        domain: Its name.
        device: Where the base runs.

    Raises:
        DeltaWError: The base or the file cannot be used.
    """
    path = data.activations(domain)
    if not path.exists():
        blocks = data.held_out(domain)
        used = Blocks(blocks.input_ids[:BLOCKS], blocks.labels[:BLOCKS])
        model = arms.open_base(data.base).to(device)
        collect_activations(model, batches(used), path, inputs=f"{len(used)} held-out blocks of {domain}")
    return path


def batches(blocks: Blocks) -> Iterator[dict[str, torch.Tensor]]:
    """Blocks as the model takes them; the padding behind the last learned token is masked."""
    places = torch.arange(1, blocks.labels.shape[1] + 1)
    ends = ((blocks.labels != IGNORED) * places).amax(dim=1)
    mask = (places <= ends[:, None]).long()
    for start in range(0, len(blocks), BATCH):
        part = slice(start, start + BATCH)
        yield {"input_ids": blocks.input_ids[part], "attention_mask": mask[part]}
