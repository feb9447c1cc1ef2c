"""Weight decay: said where there is one, by the right factor, and never where there is none.

Three kinds of pairs of checkpoints: what moves weights towards zero and is no decay (turns, pruning, grids, casts,
truncation …); decays made by hand, with and without learning, in float32 and bfloat16; and small networks that SGD,
AdamW, Lion and Muon trained, with decay and without, where 1 − Π(1 − lr·λ) is the truth.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

import deltaw
from benchmarks.calibration.rows import Row, rate

State = dict[str, Tensor]
Change = Callable[[Tensor, int, torch.Generator], Tensor]
PLACES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj")
ROWS, COLS, LAYERS = 192, 128, 2
SMALL = 0.02  # of c: what learning adds to it without a word; more than that has to be in the interval


class Case(NamedTuple):
    """Two checkpoints, and the decay between them; 0 where there is none."""

    base: State
    ft: State
    decay: float = 0.0


def pair(change: Change, seed: int = 0, dtype: torch.dtype = torch.float32, base: torch.dtype | None = None) -> Case:
    """A base of six matrices, of rows and tensors of different scale, and what `change` makes of each."""
    g = torch.Generator().manual_seed(seed)
    old, new = {}, {}
    for i, (layer, place) in enumerate(itertools.product(range(LAYERS), PLACES)):
        name = f"model.layers.{layer}.{place}.weight"
        scale = 0.02 * float(torch.exp(0.3 * torch.randn((), generator=g)))
        w0 = scale * torch.randn(ROWS, COLS, generator=g) * torch.exp(0.15 * torch.randn(ROWS, 1, generator=g))
        old[name] = w0.to(base or dtype)
        new[name] = change(old[name].double(), i, g).to(dtype)
    return Case(old, new)


def turned(angle: float, block: int = ROWS) -> Change:
    """An orthogonal matrix from the left, in blocks: what a merged OFT adapter is."""

    def change(w: Tensor, _: int, g: torch.Generator) -> Tensor:
        s = torch.randn(len(w) // block, block, block, generator=g, dtype=torch.float64)
        s = s - s.mT
        s *= angle * math.sqrt(block) / torch.linalg.matrix_norm(s)[:, None, None]
        return (torch.matrix_exp(s) @ w.view(-1, block, w.shape[1])).reshape(w.shape)

    return change


def learnt(size: float, decay: float = 0.0) -> Change:
    """A low-rank and a random part, of a norm relative to the base, after a shrink by `decay`."""

    def change(w: Tensor, i: int, g: torch.Generator) -> Tensor:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        r = normal(len(w), 8) @ normal(8, w.shape[1]) / math.sqrt(8) + 0.5 * normal(*w.shape)
        spread = (0.5, 1.0, 1.5)[i % 3]  # some tensors learn more than others
        return (1 - decay) * w + r * size * spread * w.norm() / r.norm()

    return change


def _renormalised(axis: int, to: float | None = None) -> Change:
    def change(w: Tensor, _: int, __: torch.Generator) -> Tensor:
        norms = w.norm(dim=axis, keepdim=True)
        return w / norms * (norms.mean() if to is None else to * norms.min())

    return change


def _permuted(share: float) -> Change:
    def change(w: Tensor, _: int, g: torch.Generator) -> Tensor:
        n = int(share * len(w))
        return torch.cat([w[torch.randperm(n, generator=g)], w[n:]])

    return change


def _flipped(share: float) -> Change:
    return lambda w, _, g: torch.where(torch.rand(w.shape, generator=g) < share, -w, w)


def _pruned(share: float) -> Change:
    return lambda w, _, __: torch.where(w.abs() < w.abs().quantile(share), 0.0, w)


def _clipped(sigmas: float) -> Change:
    return lambda w, _, __: w.clamp(-sigmas * w.std(), sigmas * w.std())


def _integers(bits: int, block: int, to_zero: bool = False) -> Change:
    def change(w: Tensor, _: int, __: torch.Generator) -> Tensor:
        x = w.reshape(-1, block)
        step = x.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        return ((x / step).trunc() if to_zero else (x / step).round()).mul(step).reshape(w.shape)

    return change


def _float8(dtype: torch.dtype) -> Change:
    def change(w: Tensor, _: int, __: torch.Generator) -> Tensor:
        scale = w.abs().amax(1, keepdim=True) / torch.finfo(dtype).max
        return (w / scale).to(dtype).double() * scale

    return change


def _codebook(w: Tensor, _: int, __: torch.Generator) -> Tensor:
    """NF4-like: 16 codes, the quantiles of a normal law, times the largest of 64 entries."""
    codes = torch.erfinv(torch.linspace(-0.97, 0.97, 16, dtype=torch.float64)) / torch.erfinv(torch.tensor(0.97))
    x = w.reshape(-1, 64)
    scale = x.abs().amax(1, keepdim=True)
    nearest = (x[..., None] / scale[..., None] - codes).abs().argmin(-1)
    return (codes[nearest] * scale).reshape(w.shape)


def _cut(bits: int) -> Change:
    """Rounding towards zero to that many fraction bits."""

    def change(w: Tensor, _: int, __: torch.Generator) -> Tensor:
        grain = 2.0 ** (torch.floor(torch.log2(w.abs())) - bits)
        return torch.trunc(w / grain) * grain

    return change


def _truncated_svd(w: Tensor, _: int, __: torch.Generator) -> Tensor:
    u, s, v = torch.linalg.svd(w, full_matrices=False)
    k = len(s) // 2
    return (u[:, :k] * s[:k]) @ v[:k]


def _unrelated(w: Tensor, _: int, g: torch.Generator) -> Tensor:
    return w.std() * torch.randn(w.shape, generator=g, dtype=torch.float64)


NO_DECAY: Mapping[str, Change] = {
    "turned by 5 %": turned(0.05),
    "turned by 10 %": turned(0.1),
    "turned by 20 %": turned(0.2),
    "turned in blocks of 32, as OFT does": turned(0.2, 32),
    "turned and trained": lambda w, i, g: learnt(0.02)(turned(0.1)(w, i, g), i, g),
    "rows of one norm": _renormalised(1),
    "rows of one smaller norm": _renormalised(1, 0.9),
    "columns of one norm": _renormalised(0),
    "columns of one smaller norm": _renormalised(0, 0.9),
    "neurons permuted": _permuted(1.0),
    "half of the neurons permuted": _permuted(0.5),
    "1 % of the signs flipped": _flipped(0.01),
    "half of the signs flipped": _flipped(0.5),
    "all signs flipped": _flipped(1.1),
    "unrelated": _unrelated,
    "pruned by 10 %": _pruned(0.1),
    "pruned by 30 %": _pruned(0.3),
    "pruned by 50 %": _pruned(0.5),
    "pruned by 90 %": _pruned(0.9),
    "a third of the rows removed": lambda w, _, __: w * (torch.arange(len(w)) % 3 > 0)[:, None],
    "soft threshold": lambda w, _, __: torch.sign(w) * (w.abs() - 0.02 * w.std()).clamp_min(0),
    "clipped at 2.5 σ": _clipped(2.5),
    "clipped at .5 σ": _clipped(0.5),
    "int8": _integers(8, COLS),
    "int8 towards zero": _integers(8, 64, to_zero=True),
    "int4": _integers(4, 32),
    "float8 e4m3": _float8(torch.float8_e4m3fn),
    "float8 e5m2": _float8(torch.float8_e5m2),
    "4-bit codebook": _codebook,
    "bfloat16 numbers in float32": lambda w, _, __: w.bfloat16().double(),
    "cut to 7 bits": _cut(7),
    "cut to 3 bits": _cut(3),
    "cut to 3 bits of a row's scale": lambda w, i, g: _cut(3)(w / 0.7, i, g) * 0.7,
    "half of the singular values removed": _truncated_svd,
    "each tensor by its own factor": lambda w, i, _: (1 - 0.02 * (1 + i)) * w,
    "grown": lambda w, _, __: 1.01 * w,
    "trained at 2 %": learnt(0.02),
    "trained at 10 %": learnt(0.1),
}


class Made(NamedTuple):
    """A decay made by hand."""

    decay: float
    learnt: float = 0.0
    dtype: torch.dtype = torch.float32

    def case(self, seed: int = 0) -> Case:
        """Two checkpoints with it."""
        return pair(learnt(self.learnt, self.decay), seed, self.dtype)._replace(decay=self.decay)


DECAYS: Mapping[str, Made] = {
    "pure, 1e-4": Made(1e-4),
    "pure, .003": Made(0.003),
    "pure, .01": Made(0.01),
    "pure, .1": Made(0.1),
    "pure, .6": Made(0.6),
    "pure, .0065, bfloat16": Made(0.0065, dtype=torch.bfloat16),
    "pure, .01, bfloat16": Made(0.01, dtype=torch.bfloat16),
    "pure, .05, bfloat16": Made(0.05, dtype=torch.bfloat16),
    "pure, .002, float16": Made(0.002, dtype=torch.float16),
    "trained at 2 %, .003": Made(0.003, 0.02),
    "trained at 2 %, .01": Made(0.01, 0.02),
    "trained at 5 %, .05": Made(0.05, 0.05),
    "trained at 2 %, .003, bfloat16": Made(0.003, 0.02, torch.bfloat16),
    "trained at 2 %, .02, bfloat16": Made(0.02, 0.02, torch.bfloat16),
}


class Lion(torch.optim.Optimizer):
    """Steps by the sign of a momentum, with decoupled decay.

    Source: Chen et al. 2023, algorithm 2.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step."""
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_((0.9 * momentum + 0.1 * p.grad).sign_(), alpha=group["lr"])
                momentum.mul_(0.99).add_(p.grad, alpha=0.01)


class Training(NamedTuple):
    """How a small network is trained on."""

    optimizer: Callable[..., torch.optim.Optimizer]
    lr: float
    decay: float
    steps: int

    @property
    def shrink(self) -> float:
        """1 − Π(1 − lr·λ)."""
        return 1 - (1 - self.lr * self.decay) ** self.steps


TRAININGS: Mapping[str, Training] = {
    "SGD": Training(torch.optim.SGD, 0.02, 0.02, 120),
    "SGD, longer": Training(torch.optim.SGD, 0.05, 0.02, 150),
    "AdamW": Training(torch.optim.AdamW, 1e-4, 2.0, 120),
    "AdamW, slower": Training(torch.optim.AdamW, 3e-5, 4.0, 100),
    "Lion": Training(Lion, 2e-5, 10.0, 100),
    "Lion, slower": Training(Lion, 5e-6, 20.0, 120),
    "Muon": Training(torch.optim.Muon, 5e-4, 1.0, 120),
    "Muon, longer": Training(torch.optim.Muon, 1e-3, 1.0, 120),
}


def trained(training: Training, seed: int = 0, *, decay: bool = True, before: int = 150, width: int = 64) -> Case:
    """A network that learnt a task for a while, and what it is after some more steps of an optimiser."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed + 1)
    layers = [layer for _ in range(4) for layer in (nn.Linear(width, width, bias=False), nn.Tanh())]
    net = nn.Sequential(*layers, nn.Linear(width, 10, bias=False))
    teacher = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))
    weights = list(net.parameters())
    _steps(net, teacher, torch.optim.AdamW(weights, lr=2e-3, weight_decay=0.0), before, g)
    base = {name: w.detach().clone() for name, w in net.state_dict().items()}
    optimizer = training.optimizer(weights, lr=training.lr, weight_decay=training.decay if decay else 0.0)
    _steps(net, teacher, optimizer, training.steps, g)
    return Case(base, net.state_dict(), training.shrink if decay else 0.0)


def _steps(
    net: nn.Module, teacher: nn.Sequential, optimizer: torch.optim.Optimizer, steps: int, g: torch.Generator
) -> None:
    for _ in range(steps):
        x = torch.randn(64, teacher[0].in_features, generator=g)
        loss = nn.functional.cross_entropy(net(x), teacher(x).detach().argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def found(case: Case) -> deltaw.results.decay.Decay:
    """What an analysis of the two checkpoints says of decay."""
    return deltaw.analyze(case.base, case.ft, device="cpu", jobs=1).summary.decay


def table(seeds: int = 5) -> Iterator[Row]:
    """Nominal against measured: how often a decay is said, and how far its factor and its interval are right."""
    for name, change in NO_DECAY.items():
        said = [found(pair(change, seed)).visible for seed in range(seeds)]
        yield rate(f"no decay: {name}", "said in 0", sum(said), seeds)
    for name, made in DECAYS.items():
        yield from _against_truth(f"decay: {name}", [made.case(seed) for seed in range(seeds)])
    for name, training in TRAININGS.items():
        yield from _against_truth(f"decay: {name}", [trained(training, seed) for seed in range(seeds)])
        said = [found(trained(training, seed, decay=False)).visible for seed in range(seeds)]
        yield rate(f"no decay: {name}", "said in 0", sum(said), seeds)


def _against_truth(name: str, cases: list[Case]) -> Iterator[Row]:
    seen = [(found(case), case.decay) for case in cases]
    visible = [(d, c) for d, c in seen if d.visible]
    yield rate(name, "said in 1", len(visible), len(seen))
    if visible:
        right = sum(abs(d.value / c - 1) <= SMALL or d.low <= c <= d.high for d, c in visible)
        off = sorted(abs(d.value / c - 1) for d, c in visible)
        yield Row(f"{name}: median error of c", "≤ .05", off[len(off) // 2], len(off))
        yield rate(f"{name}: c within 2 %, or in its interval", "≥ .95", right, len(visible))
