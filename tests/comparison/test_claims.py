"""Verdicts case by case, and on the numbers that the paper published."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import deltaw
from deltaw.comparison.claims.verdicts import Claim, Evidence
from deltaw.types import Interval

NAN = float("nan")
# Biderman et al. 2024: HumanEval or GSM8K, and the mean of HellaSwag, WinoGrande and ARC-C, at 20B tokens.
PUBLISHED = {
    "code": {"full": (0.263, 0.545), 256: (0.224, 0.617), 64: (0.196, 0.626), 16: (0.162, 0.635)},
    "maths": {"full": (0.293, 0.618), 256: (0.202, 0.616), 16: (0.158, 0.637)},
}
# Jiang et al. 2024: recall of UUID pairs at 900 steps.
UUID = {"full": 1.0, "lora": 0.542, "mora": 1.0}


def published(tmp_path: Path) -> Path:
    lines = ['title = "Learns less and forgets less, 20B tokens"']
    for domain, points in PUBLISHED.items():
        for arm, (learning, retention) in points.items():
            group = "full" if arm == "full" else f"LoRA r={arm}"
            lines += [
                *("[[runs]]", f'name = "{group}, {domain}"', f'group = "{group}, {domain}"'),
                f'method = "{"full" if arm == "full" else "lora"}"',
                "tokens = 20_000_000_000",
                *("[runs.hyperparameters]", f'domain = "{domain}"', 'training = "cpt"'),
                *([f"rank = {arm}"] if arm != "full" else []),
                *("[runs.scores]", f"learning = {learning}", f"retention = {retention}"),
            ]
    for method, recall in UUID.items():
        rank = [] if method == "full" else ["rank = 8"]
        lines += ["[[runs]]", f'name = "{method}, uuid"', f'method = "{method}"', "tokens = 900"]
        lines += ["[runs.hyperparameters]", 'domain = "uuid"', *rank, "[runs.scores]", f"learning = {recall}"]
    path = tmp_path / "published.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def paper(tmp_path: Path) -> deltaw.Comparison:
    return deltaw.compare(published(tmp_path))


def verdicts(claims: pd.DataFrame, about: str = "") -> dict[str, str]:
    return {r["claim"]: r["verdict"] for _, r in claims.iterrows() if about in {r["about"], ""}}


def test_published_points_and_front(paper: deltaw.Comparison) -> None:
    runs = paper.runs().set_index("run")
    for domain, points in PUBLISHED.items():
        for arm, point in points.items():
            name = f"full, {domain}" if arm == "full" else f"LoRA r={arm}, {domain}"
            assert tuple(runs.loc[name, ["learning", "retention"]]) == point
    code = runs[runs["hp_domain"] == "code"]
    maths = runs[runs["hp_domain"] == "maths"]
    assert code["on_front"].all()
    assert list(maths["on_front"]) == [True, False, True]  # r = 256 learns less than full and keeps less
    assert paper.reference == "full, code"


def test_published_verdicts(paper: deltaw.Comparison) -> None:
    claims = paper.claims()
    code, maths, uuid = (verdicts(claims, a) for a in ("code, cpt", "maths, cpt", "uuid"))
    assert code["lora-learns-less"] == maths["lora-learns-less"] == "agrees"
    assert code["lora-forgets-less"] == "agrees"
    assert maths["lora-forgets-less"] == "agrees"  # r = 16 does; r = 256 is undecided, not against
    assert maths["high-rank-forgets-like-full"] == "agrees"
    whole = claims.set_index("claim")["verdict"]
    assert whole["retention-gap-larger-for-code"] == "agrees"
    # At 20B tokens the gap in learning is larger for maths: .039 against .091 at r = 256, .101 against .135 at r = 16.
    assert whole["learning-gap-larger-for-code"] == "disagrees"
    assert whole["learning-gap-larger-for-pretraining"] == "cannot tell"
    assert uuid["mora-learns-more"] == "agrees"
    assert (claims[claims["verdict"] != "cannot tell"]["basis"] == "points").all()
    said = claims.set_index("claim").loc["mora-learns-more", "says"]
    assert "+0.458" in said
    assert "chance cannot be excluded" in said
    # One point per group: nothing is known at equal learning, and endpoints do not stand in for it.
    assert code["lora-forgets-less-at-equal-learning"] == "cannot tell"


def test_each_domain_has_its_own_reference(paper: deltaw.Comparison) -> None:
    prints = paper.fingerprints().set_index("group")
    assert prints.loc["LoRA r=256, code", "reference"] == "full, code"
    assert prints.loc["LoRA r=256, maths", "reference"] == "full, maths"
    assert prints.loc["LoRA r=16, maths", "retention_effect"] == pytest.approx(0.637 - 0.618)
    assert prints.loc["mora, uuid", "learning_effect"] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([(1, 0.5, 1.5)], "agrees"),
        ([(1, -0.5, 2.5)], "cannot tell"),
        ([(-1, -1.5, -0.5)], "disagrees"),
        ([(1, 0.5, 1.5), (-1, -1.5, -0.5)], "cannot tell"),
        ([(1, 0.5, 1.5), (0, -1, 1)], "agrees"),
        ([(-1, -1.5, -0.5), (0, -1, 1)], "disagrees"),
        ([(0.3, NAN, NAN)], "agrees"),
        ([(0.1, NAN, NAN)], "cannot tell"),
        ([(-0.3, NAN, NAN)], "disagrees"),
        ([], "cannot tell"),
    ],
)
def test_rule_of_the_verdict(values: list[tuple[float, float, float]], verdict: str) -> None:
    evidence = [Evidence("a − b", Interval(*v), margin=0.2) for v in values]
    assert Claim("c", "text", "source", "rule", evidence=evidence).verdict == verdict


def test_seeds_decide(scored: Callable[..., object]) -> None:
    """The same means agree with clear seeds and cannot tell with noisy ones."""
    from deltaw.comparison.claims import all_claims
    from deltaw.comparison.fronts import fronts_frame
    from deltaw.comparison.trajectories import trajectories_frame

    for noise, verdict in ((0.001, "agrees"), (0.2, "cannot tell")):
        points = [
            (group, method, level + noise * (seed - 1), 1 - level - noise * (seed - 1), {"seed": seed})
            for group, method, level in (("full", "full", 0.3), ("LoRA r=8", "lora", 0.2))
            for seed in range(3)
        ]
        runs = scored(*points)
        found = all_claims(runs, fronts_frame(runs), trajectories_frame(runs))  # type: ignore[arg-type]
        by_name = {c.claim: c for c in found}
        assert by_name["lora-learns-less"].verdict == verdict
        assert by_name["lora-forgets-less"].verdict == verdict
        assert by_name["lora-learns-less"].basis == "intervals"


def test_decay_and_dropout(scored: Callable[..., object]) -> None:
    from deltaw.comparison.claims import all_claims
    from deltaw.comparison.fronts import fronts_frame
    from deltaw.comparison.trajectories import trajectories_frame

    def arm(group: str, method: str, learning: float, kept: float, **hyper: float) -> list[tuple[object, ...]]:
        wobble = (-0.001, 0.0, 0.001)
        return [
            (group, method, learning + w, kept + w, {"seed": i, "hyperparameters": hyper}) for i, w in enumerate(wobble)
        ]

    runs = scored(
        *arm("full", "full", 0.30, 0.50),
        *arm("decay", "full", 0.295, 0.505, weight_decay=0.1),
        *arm("dropout", "full", 0.22, 0.58, attention_dropout=0.1),
        *arm("LoRA", "lora", 0.2, 0.6, rank=16, lora_dropout=0.05),
    )
    found = {c.claim: c for c in all_claims(runs, fronts_frame(runs), trajectories_frame(runs))}  # type: ignore[arg-type]
    more = found["lora-regularises-more"]
    assert more.verdict == "agrees"
    assert len(more.evidence) == 2
    alike = {e.what: e.speaks for e in found["decay-and-dropout-like-plain"].evidence}
    assert alike["decay − full on learning"] == alike["decay − full on retention"] == 1
    assert alike["dropout − full on learning"] == alike["dropout − full on retention"] == -1


def test_claims_about_weights(analysis: Callable[..., deltaw.Analysis]) -> None:
    """Full: rank 160, higher in MLP, lower at the ends. LoRA of rank 8."""

    def full(seed: int) -> deltaw.Analysis:
        rng = np.random.default_rng(seed)
        rows = []
        for row in analysis(blocks=6, seed=seed).rows:
            rank = 160 * (1.3 if row["kind"] == "mlp" else 1.0) * (0.7 if row["layer"] in {0, 5} else 1.0)
            rank *= np.exp(rng.normal(0, 0.02))
            rows.append(dict(row) | {"rank_90": rank, "rank_90_ratio": rank / row["rank_90_null"]})
        return deltaw.Analysis(rows)

    lora = [analysis({"rank_90": 0.1}, blocks=6, seed=s, adapter="lora", rank=8) for s in (5, 6, 7)]
    c = deltaw.compare({"full": [full(s) for s in range(3)], "LoRA": lora})
    found = c.claims().set_index("claim")
    for claim in ("full-rank-10-to-100-times", "mlp-above-attention", "first-and-last-lower"):
        assert found.loc[claim, "verdict"] == "agrees", found.loc[claim, "says"]
    assert "pure noise" in found.loc["full-rank-10-to-100-times", "says"]
    assert found.loc["rank-grows-with-tokens", "verdict"] == "cannot tell"
    noisy = [deltaw.Analysis([dict(r) | {"resolution": "noisy"} for r in full(s).rows]) for s in range(3)]
    silent = deltaw.compare({"full": noisy}).claims().set_index("claim")
    assert silent.loc["mlp-above-attention", "verdict"] == "cannot tell"  # a rank of rounding is no rank


def test_small_matrices_cannot_show_a_hundredfold_rank(analysis: Callable[..., deltaw.Analysis]) -> None:
    c = deltaw.compare({"full": analysis(), "LoRA r=64": analysis(adapter="lora", rank=64)})
    found = c.claims().set_index("claim").loc["full-rank-10-to-100-times"]
    assert found["verdict"] == "cannot tell"
    assert "256 singular values, less than 10 × 64" in found["says"]
