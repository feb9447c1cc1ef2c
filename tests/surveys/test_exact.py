"""Inner products and overlaps from factors, against dense float64; the same numbers however little memory there is."""

import itertools
import math

import numpy as np
import pytest
import torch

from deltaw.metrics import phi
from deltaw.surveys.exact import PairSums, Thin, pair_sums
from deltaw.surveys.look import TOP
from deltaw.surveys.parts import Looked
from deltaw.surveys.table import UpdateTable

SHAPES = {"model.layers.0.self_attn.q_proj.weight": (30, 30), "model.layers.0.mlp.up_proj.weight": (40, 30)}
RANKS = (1, 3, 8, 20)


def adapters() -> list[dict[str, torch.Tensor]]:
    """Of several ranks, one without the second matrix, all leaning to a common direction."""
    g = torch.Generator().manual_seed(0)
    common = {key: (torch.randn(m, 1, generator=g), torch.randn(1, n, generator=g)) for key, (m, n) in SHAPES.items()}
    out = []
    for i, r in enumerate(RANKS):
        own = {}
        for key, (m, n) in SHAPES.items():
            B, A = torch.randn(m, r, generator=g), torch.randn(r, n, generator=g)
            own[key] = (B @ A + 3 * common[key][0] @ common[key][1]).double()
        if i == 1:
            own.pop("model.layers.0.mlp.up_proj.weight")
        out.append(own)
    return out


def solve(
    all_: list[dict[str, torch.Tensor]], memory: int, some: list[list[int]] | None = None
) -> tuple[UpdateTable, np.ndarray, PairSums]:
    def looked(own: dict[str, torch.Tensor]) -> Looked:
        norms = np.array([float(x.norm()) for x in own.values()])
        ranks = tuple(int(torch.linalg.matrix_rank(x)) for x in own.values())
        return Looked(keys=tuple(own), shapes=tuple(SHAPES[k] for k in own), ranks=ranks, norms=norms)

    table = UpdateTable.of([looked(own) for own in all_])
    pairs = np.array(some or list(itertools.combinations(range(len(all_)), 2)))

    def read(adapter: int, column: int) -> Thin:
        U, s, Vh = torch.linalg.svd(all_[adapter][table.columns[column].key], full_matrices=False)
        r = int((s > 1e-9 * s[0]).sum())
        return Thin(U[:, :r], s[:r], Vh[:r].T)

    return table, pairs, pair_sums(table, pairs, read, memory=memory, done=lambda d, t: None)


@pytest.mark.parametrize(
    ("memory", "some"),
    [(1 << 30, None), (30_000, None), (1, None), (1 << 30, [[0, 1], [2, 3]])],
    ids=["all at once", "tiles", "pairs", "some pairs"],
)
def test_sums_are_those_of_dense_matrices(memory: int, some: list[list[int]] | None):
    all_ = adapters()
    table, pairs, sums = solve(all_, memory, some)
    for p, (a, b) in enumerate(pairs):
        for j, of_kind in enumerate(table.kinds.values()):
            keys = [c.key for c, mine in zip(table.columns, of_kind, strict=True) if mine]
            shared = [k for k in keys if k in all_[a] and k in all_[b]]
            assert sums.count[p, j] == len(shared)
            inner = sum(float((all_[a][k] * all_[b][k]).sum()) for k in shared)
            norms = [math.prod(float(all_[i][k].norm()) for i in (a, b)) for k in shared]
            assert abs(sums.inner[p, j] - inner) <= 1e-10 * sum(norms)
            left = right = null = 0.0
            for k in shared:
                x, y = (torch.linalg.svd(all_[i][k], full_matrices=False) for i in (a, b))
                r = min(TOP, *(int(torch.linalg.matrix_rank(all_[i][k])) for i in (a, b)))
                left += phi(x.U[:, :r].numpy(), y.U[:, :r].numpy())
                right += phi(x.Vh[:r].T.numpy(), y.Vh[:r].T.numpy())
                null += r * (1 / SHAPES[k][0] + 1 / SHAPES[k][1]) / 2
            assert (sums.left[p, j], sums.right[p, j]) == pytest.approx((left, right), abs=1e-10)
            assert sums.null[p, j] == pytest.approx(null)


def test_the_null_of_overlaps_is_what_random_subspaces_have():
    g = torch.Generator().manual_seed(1)
    all_ = [{k: torch.randn(s[0], 4, generator=g).double() @ torch.randn(4, s[1], generator=g).double()
             for k, s in SHAPES.items()} for _ in range(40)]  # fmt: skip
    _, _, sums = solve(all_, 1 << 30)
    found = (sums.left + sums.right).mean() / 2
    assert found == pytest.approx(sums.null.mean(), rel=0.02)
