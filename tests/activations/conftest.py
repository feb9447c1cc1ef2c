"""A small network of every kind of layer, and what its matrices met, kept by hooks of the test's own."""

from collections import defaultdict

import pytest
import torch
from torch import Tensor, nn


class Conv1D(nn.Module):
    """transformers' layer of that name: inputs × outputs."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(0.1 * torch.randn(nx, nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Network(nn.Module):
    """Tokens → attention-like layers that share inputs, two experts, a convolution, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 12)
        self.q, self.k = nn.Linear(12, 12, bias=False), nn.Linear(12, 6)
        self.c_fc = Conv1D(20, 12)
        self.experts = nn.ModuleList(nn.Linear(12, 12) for _ in range(2))
        self.conv = nn.Conv1d(20, 5, 3, stride=2, padding=1, dilation=2)
        self.drop = nn.Dropout(0.5)
        self.unused = nn.Linear(3, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.drop(self.embed(input_ids))
        x = x + self.q(x) + self.k(x).repeat(1, 1, 2)
        even = input_ids % 2 == 0
        x = x.clone()
        for expert, routed in zip(self.experts, (even, ~even), strict=True):
            x[routed] = expert(x[routed])
        return self.conv(torch.relu(self.c_fc(x)).transpose(1, 2))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().double()


@pytest.fixture
def batches() -> list[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, 30, (3, 9), generator=g)} for _ in range(4)]


def met(model: nn.Module, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The inputs of every linear layer, (N, n)."""
    found = defaultdict(list)
    hooks = [
        m.register_forward_hook(lambda _, a, __, name=name: found[f"{name}.weight"].append(a[0].flatten(0, -2)))
        for name, m in model.named_modules()
        if isinstance(m, (nn.Linear, Conv1D))
    ]
    with torch.no_grad():
        for batch in batches:
            model.eval()(**batch)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(x).double() for name, x in found.items()}
