"""Verdicts case by case, and on the numbers that the paper published."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import deltaw
from deltaw.comparison.claims import all_claims
from deltaw.comparison.claims.verdicts import Claim, ClaimEvidence
from deltaw.comparison.fronts import compare_fronts
from deltaw.comparison.runs import Runs
from deltaw.comparison.welch import Estimate
from deltaw.results.sources import Source

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


def test_published_points(paper: deltaw.Comparison) -> None:
    """The paper gives no seeds: no verdict, and the direction of every point."""
    claims = paper.claims()
    told = claims[claims["basis"] != ""]
    assert set(told["basis"]) == {"points"}
    assert set(told["verdict"]) == {"cannot tell"}
    assert told["p_claim"].isna().all()
    assert (told["for"] + told["against"] == 0).all()
    by = {(r["claim"], r["about"]): r for _, r in claims.iterrows()}
    code, maths = by["lora-learns-less", "code, cpt"], by["lora-learns-less", "maths, cpt"]
    assert (code["points_for"], code["points_against"], code["undecided"]) == (3, 0, 3)
    assert (maths["points_for"], maths["points_against"]) == (2, 0)
    kept = by["lora-forgets-less", "maths, cpt"]
    assert (kept["points_for"], kept["points_against"]) == (1, 1)  # r = 256 kept .616, full .618
    assert by["high-rank-forgets-like-full", "maths, cpt"]["points_for"] == 1
    assert by["retention-gap-larger-for-code", ""]["points_for"] == 2
    # At 20B tokens the gap in learning is larger for maths: .039 against .091 at r = 256, .101 against .135 at r = 16.
    assert by["learning-gap-larger-for-code", ""]["points_against"] == 2
    mora = by["mora-learns-more", "uuid"]
    assert "+0.458" in mora["says"]
    assert "One seed on a side: no verdict; the point is for it." in mora["says"]
    assert "Two seeds or more" in mora["decides"]
    # One point per group: nothing is known at equal learning, and endpoints do not stand in for it.
    assert by["lora-forgets-less-at-equal-learning", "code, cpt"]["basis"] == ""


def test_each_domain_has_its_own_reference(paper: deltaw.Comparison) -> None:
    prints = paper.fingerprints().set_index("group")
    assert prints.loc["LoRA r=256, code", "reference"] == "full, code"
    assert prints.loc["LoRA r=256, maths", "reference"] == "full, maths"
    assert prints.loc["LoRA r=16, maths", "retention_effect"] == pytest.approx(0.637 - 0.618)
    assert prints.loc["mora, uuid", "learning_effect"] == pytest.approx(0.0)


def evidence(value: float, error: float = NAN) -> ClaimEvidence:
    return ClaimEvidence("a − b", Estimate(value, error, 10.0))


@pytest.mark.parametrize(
    ("values", "verdict", "grade"),
    [
        ([(1, 0.1)], "agrees", ""),
        ([(1, 1.0)], "cannot tell", ""),
        ([(-1, 0.1)], "disagrees", ""),
        ([(1, 0.1), (-1, 0.1)], "cannot tell", "1 of 2, 1 against"),
        ([(1, 0.1), (1, 0.1), (0.1, 1)], "agrees", "2 of 3, 1 undecided"),
        ([(1, 0.1), (-0.2, 1)], "agrees", "1 of 2, 1 undecided"),  # a small point on the other side
        ([(1, 0.1), (-0.6, 1)], "cannot tell", "1 of 2, 1 undecided"),  # one that weighs
        ([(-1, 0.1), (0.1, 1)], "disagrees", "1 of 2 against, 1 undecided"),
        ([(1, 0.1), (5, NAN)], "agrees", "1 of 2, 1 undecided"),  # a single seed decides nothing
        ([(5, NAN)], "cannot tell", ""),
        ([(5, NAN), (-5, NAN)], "cannot tell", "none of 2 decided"),
        ([], "cannot tell", ""),
    ],
)
def test_rule_of_the_verdict(values: list[tuple[float, float]], verdict: str, grade: str) -> None:
    found = Claim("c", "text", "source", "rule", evidence=[evidence(*v) for v in values])
    assert (found.verdict, found.grade) == (verdict, grade)


def test_a_claim_that_says_and_needs_all() -> None:
    def both(*values: tuple[float, float]) -> str:
        found = [evidence(*v) for v in values]
        return Claim("c", "text", "source", "rule", evidence=found, needs_all=True).verdict

    assert both((1, 0.1), (1, 0.1)) == "agrees"
    assert both((1, 0.1), (0.1, 1)) == "cannot tell"
    assert both((1, 0.1), (-1, 0.1)) == "disagrees"


def test_comparisons_of_a_claim_are_adjusted_for_their_number() -> None:
    """p = .03 decides alone, and not as one of three."""
    e = Estimate(1.0, 0.4, 10.0)
    assert 0.017 < ClaimEvidence("", e).p < 0.05
    alone = Claim("c", "", "", "", evidence=[ClaimEvidence("", e)])
    three = Claim("c", "", "", "", evidence=[ClaimEvidence("", e), evidence(0.1, 1), evidence(0.1, 1)])
    assert (alone.verdict, three.verdict) == ("agrees", "cannot tell")
    assert three.p_claim == pytest.approx(3 * alone.p_claim)
    low = [d.evidence.interval(d.alpha).low for d in (alone.decisions[0], three.decisions[0])]
    assert low[0] > 0 > low[1]


def test_what_would_decide() -> None:
    assert "Two seeds" in Claim("c", "", "", "", evidence=[evidence(1)]).decides
    assert "seeds in each group would decide" in Claim("c", "", "", "", evidence=[evidence(1, 0.6)]).decides
    assert "would not decide it soon" in Claim("c", "", "", "", evidence=[evidence(0.001, 0.6)]).decides
    assert Claim("c", "", "", "", evidence=[evidence(1, 0.1)]).decides == ""


def checked(runs: Runs) -> dict[str, Claim]:
    return {c.claim: c for c in all_claims(runs, compare_fronts(runs))}


def arm(
    group: str, method: str, learning: float, kept: float, *, seeds: int = 3, tokens: int | None = None, **hyper: object
) -> list[tuple[object, ...]]:
    """Replicates that differ by .001 from seed to seed."""
    more = {"hyperparameters": hyper, "tokens": tokens}
    shifts = [0.001 * (i - (seeds - 1) / 2) for i in range(seeds)]
    return [(group, method, learning + w, kept - w, more | {"seed": i}) for i, w in enumerate(shifts)]


def test_seeds_decide(scored: Callable[..., Runs]) -> None:
    """The same means agree with clear seeds and cannot tell with noisy ones."""
    for noise, verdict in ((0.001, "agrees"), (0.2, "cannot tell")):
        points = [
            (group, method, level + noise * (seed - 1), 1 - level - noise * (seed - 1), {"seed": seed})
            for group, method, level in (("full", "full", 0.3), ("LoRA r=8", "lora", 0.2))
            for seed in range(3)
        ]
        by_name = checked(scored(*points))
        assert by_name["lora-learns-less"].verdict == verdict
        assert by_name["lora-forgets-less"].verdict == verdict
        assert by_name["lora-learns-less"].basis == "intervals"


def test_one_seed_on_one_side_decides_nothing(scored: Callable[..., Runs]) -> None:
    runs = scored(*arm("full", "full", 0.3, 0.5), *arm("LoRA", "lora", 0.1, 0.7, seeds=1))
    found = checked(runs)["lora-learns-less"]
    assert (found.verdict, found.basis) == ("cannot tell", "points")
    assert found.says.startswith("One seed on a side: no verdict; the point is for it.")


def test_the_test_items_error_is_not_the_seeds(scored: Callable[..., Runs]) -> None:
    runs = scored(*arm("full", "full", 0.3, 0.5, seeds=1), *arm("LoRA", "lora", 0.1, 0.7, seeds=1))
    for run in runs.items:
        run.spec.scores["learning"] = replace(run.spec.scores["learning"], error=0.005)  # type: ignore[index]
    found = checked(runs)["lora-learns-less"]
    assert (found.verdict, found.basis) == ("cannot tell", "test items only")
    assert "(±0.014 by the test items alone)" in found.says


def test_endpoints_are_at_the_tokens_that_both_have(scored: Callable[..., Runs]) -> None:
    """Full went on to 20M tokens; at 1M, where LoRA stopped, LoRA had learned more."""
    runs = scored(
        *arm("full", "full", 0.10, 0.60, tokens=1_000_000),
        *arm("full", "full", 0.15, 0.57, tokens=20_000_000),
        *arm("LoRA", "lora", 0.12, 0.59, tokens=1_000_000),
    )
    found = checked(runs)["lora-learns-less"]
    assert found.verdict == "disagrees"
    assert "at 1,000,000 tokens" in found.says
    apart = scored(*arm("full", "full", 0.1, 0.6, tokens=10), *arm("LoRA", "lora", 0.2, 0.5, tokens=20))
    nothing = checked(apart)["lora-learns-less"]
    assert (nothing.verdict, nothing.basis) == ("cannot tell", "")
    assert "no number of tokens in common" in nothing.says


def test_unequal_sweeps_are_named_and_paid_for(scored: Callable[..., Runs]) -> None:
    rates = [arm("LoRA", "lora", 0.3 + 0.0001 * i, 0.5, seeds=2, learning_rate=1e-4 * (i + 1)) for i in range(10)]
    runs = scored(*arm("full", "full", 0.297, 0.5, seeds=2, learning_rate=1e-4), *(p for r in rates for p in r))
    found = checked(runs)["lora-learns-less"]
    assert "(best of 1 setting against best of 10)" in found.says
    assert found.evidence[0].estimate.trials == 10
    assert found.verdict == "cannot tell"


def test_decay_and_dropout(scored: Callable[..., Runs]) -> None:
    runs = scored(
        *arm("full", "full", 0.30, 0.50),
        *arm("decay", "full", 0.2995, 0.5005, weight_decay=0.1),
        *arm("dropout", "full", 0.22, 0.58, attention_dropout=0.1),
        *arm("LoRA", "lora", 0.2, 0.6, rank=16, lora_dropout=0.05),
        *arm("LoRA r=64", "lora", 0.02, 0.25, rank=64),  # diverged: no yardstick for what is small
    )
    found = checked(runs)
    assert found["lora-regularises-more"].counts == (2, 2, 0)
    like = found["decay-and-dropout-like-plain"]
    alike = {d.evidence.what: d.speaks for d in like.decisions}
    assert alike["decay − full on learning"] == alike["decay − full on retention"] == 1
    assert alike["dropout − full on learning"] == alike["dropout − full on retention"] == -1
    assert "allowed ±0.025" in like.says  # a quarter of LoRA's .1, not of the diverged run's .28
    nothing = checked(scored(*arm("full", "full", 0.3, 0.5), *arm("d", "full", 0.3, 0.5, weight_decay=0.1)))
    assert nothing["decay-and-dropout-like-plain"].basis == ""


def test_high_rank_is_about_a_high_rank_and_a_gap_that_is_there(scored: Callable[..., Runs]) -> None:
    def maths(low: tuple[int, float], high: tuple[int, float]) -> Claim:
        arms = [arm(f"r{r}", "lora", 0.2, kept, rank=r, domain="maths") for r, kept in (low, high)]
        full = arm("full", "full", 0.3, 0.6, domain="maths")
        return checked(scored(*full, *(p for a in arms for p in a)))["high-rank-forgets-like-full"]

    assert maths((16, 0.7), (256, 0.605)).verdict == "agrees"
    assert maths((16, 0.7), (256, 0.66)).verdict == "disagrees"
    assert "at least 256" in maths((1, 0.7), (2, 0.605)).says
    assert "did not keep more" in maths((1, 0.5), (256, 0.605)).says


def test_the_counter_claim_stands_beside_the_claim(scored: Callable[..., Runs]) -> None:
    """Full fine-tuning with AdamW, the optimiser of the pretraining, kept more than LoRA; with SGD less."""
    base = {"pretraining_optimizer": "AdamW"}
    runs = scored(
        *arm("full SGD", "full", 0.3, 0.40, optimizer="sgd", **base),
        *arm("full AdamW", "full", 0.3, 0.65, optimizer="adamw_torch", **base),
        *arm("LoRA", "lora", 0.2, 0.60, optimizer="adamw", rank=8, **base),
    )
    found = checked(runs)
    assert found["lora-forgets-less"].verdict == "agrees"  # against the first full group
    assert found["full-with-same-optimiser-forgets-less"].verdict == "agrees"
    assert found["full-with-same-optimiser-forgets-less"].evidence[0].what.startswith("full AdamW − LoRA")
    assert "2605.06654" in found["full-with-same-optimiser-forgets-less"].source


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


def test_noise_is_said_to_be_noise(analysis: Callable[..., deltaw.Analysis]) -> None:
    """An update of pure noise satisfies two rank claims by its shape alone: the sentence says so."""

    def noise(seed: int) -> deltaw.Analysis:
        rng = np.random.default_rng(seed)
        rows = []
        for row in analysis(seed=seed).rows:
            null = (0.51 if row["rows"] == row["cols"] else 0.75) * min(row["rows"], row["cols"])
            rows.append(dict(row) | {"rank_90": null * np.exp(rng.normal(0, 0.003)), "rank_90_null": null})
        return deltaw.Analysis(rows)

    lora = [analysis({"rank_90": 0.1}, seed=s, adapter="lora", rank=8) for s in (5, 6, 7)]
    found = deltaw.compare({"full": [noise(s) for s in range(3)], "LoRA": lora}).claims().set_index("claim")
    for claim in ("full-rank-10-to-100-times", "mlp-above-attention"):
        assert "as pure noise of these shapes would" in found.loc[claim, "says"]


def test_first_and_last_needs_both(analysis: Callable[..., deltaw.Analysis]) -> None:
    def full(seed: int) -> deltaw.Analysis:
        rng = np.random.default_rng(seed)
        lower = {0: 0.7}
        return deltaw.Analysis(
            [
                dict(row) | {"rank_90": 100 * lower.get(int(row["layer"]), 1.0) * np.exp(rng.normal(0, 0.02))}
                for row in analysis(blocks=6, seed=seed).rows
            ]
        )

    found = (
        deltaw.compare({"full": [full(s) for s in range(3)]}).claims().set_index("claim").loc["first-and-last-lower"]
    )
    assert (found["verdict"], found["for"], found["undecided"]) == ("cannot tell", 1, 1)


def test_a_rank_grows_only_over_the_same_matrices(
    manifest: Callable[[str], Path], analysis: Callable[..., deltaw.Analysis], tmp_path: Path
) -> None:
    """No rank changes, but at the first point only the matrices of small rank stand above their rounding."""
    text = []
    for seed in range(3):
        for tokens in (100, 200):
            rng = np.random.default_rng([seed, tokens])
            rows = []
            for row in analysis().rows:
                small = row["kind"] == "attention"
                rank = round((200 if small else 600) * np.exp(rng.normal(0, 0.005)))
                rows.append(
                    dict(row) | {"rank_90": rank, "resolution": "resolved" if small or tokens > 100 else "noisy"}
                )
            name = f"full-{seed}-{tokens}"
            deltaw.Analysis(rows, base=Source(path="b"), ft=Source(path=name), options={}).save(tmp_path / name)
            text.append(
                f'[[runs]]\nname = "{name}"\ngroup = "full"\nmethod = "full"\nseed = {seed}\ntokens = {tokens}\n'
                f'results = "{name}"\n'
            )
    c = deltaw.compare(manifest("\n".join(text)))
    found = c.claims().set_index("claim").loc["rank-grows-with-tokens"]
    assert found["verdict"] == "cannot tell"
    assert "over 16 matrices" in found["says"]
    curve = c.trajectories().query("metric == 'rank_90'")["value"]
    assert curve.max() < 1.02 * curve.min()


def test_stable_rank_over_lora_ranks(analysis: Callable[..., deltaw.Analysis]) -> None:
    def lora(rank: int, beta: float, seed: int) -> deltaw.Analysis:
        rng = np.random.default_rng([rank, seed])
        rows = analysis(adapter="lora", rank=rank, seed=seed).rows
        size = rank**beta * np.exp(rng.normal(0, 0.002))
        return deltaw.Analysis([dict(r) | {"stable_rank": size} for r in rows])

    for beta, verdict in ((0.265, "agrees"), (0.6, "disagrees")):
        groups = {f"LoRA r={r}": [lora(r, beta, s) for s in range(3)] for r in (4, 16, 64)}
        found = deltaw.compare(groups).claims().set_index("claim").loc["stable-rank-grows-as-a-power"]
        assert found["verdict"] == verdict, found["says"]
        assert f"{beta:.3g}" in found["says"]


def test_updates_of_reinforcement_learning(
    manifest: Callable[[str], Path], analysis: Callable[..., deltaw.Analysis], tmp_path: Path
) -> None:
    """Sparse against dense updates, one direction, σ1 along a line: each against its own rule."""
    text = []
    for training, share, first in (("rl", 0.8, 0.7), ("sft", 0.1, 0.1)):
        for seed in range(3):
            for tokens in (100, 200, 300, 400):
                rng = np.random.default_rng([seed, tokens])
                name = f"{training}-{seed}-{tokens}"
                more = {"unchanged_fraction": share, "energy_at_1": first, "spectral_norm": 0.01 * tokens}
                rows = [
                    dict(r) | {k: v * np.exp(rng.normal(0, 0.01)) for k, v in more.items()}
                    for r in analysis(seed=seed).rows
                ]
                deltaw.Analysis(rows, base=Source(path="b"), ft=Source(path=name), options={}).save(tmp_path / name)
                text.append(
                    f'[[runs]]\nname = "{name}"\ngroup = "full {training}"\nmethod = "full"\nseed = {seed}\n'
                    f'tokens = {tokens}\nresults = "{name}"\n[runs.hyperparameters]\ntraining = "{training}"\n'
                )
    found = deltaw.compare(manifest("\n".join(text))).claims().set_index("claim")
    for claim in ("rl-updates-are-sparse", "rl-rank-1-dominates", "rl-rank-1-is-linear"):
        assert found.loc[claim, "verdict"] == "agrees", found.loc[claim, "says"]
    assert found.loc["rl-rank-1-is-linear", "about"] == "rl"  # not of the supervised runs


def test_intruders_against_retention(
    analysis: Callable[..., deltaw.Analysis], manifest: Callable[[str], Path], tmp_path: Path
) -> None:
    text = []
    for i in range(8):
        for seed in range(2):
            name = f"g{i}-{seed}"
            rows = [dict(r) | {"intruders": i} for r in analysis(seed=10 * i + seed).rows]
            deltaw.Analysis(rows, base=Source(path="b"), ft=Source(path=name), options={}).save(tmp_path / name)
            text.append(
                f'[[runs]]\nname = "{name}"\ngroup = "g{i}"\nmethod = "full"\nseed = {seed}\nresults = "{name}"\n'
                f"[runs.scores]\nretention = {0.6 - 0.01 * i + 0.001 * seed}\n"
            )
    found = deltaw.compare(manifest("\n".join(text))).claims().set_index("claim").loc["intruders-predict-forgetting"]
    assert found["verdict"] == "agrees"
    assert "8 settings, ρ: 1 [" in found["says"]


def test_small_matrices_cannot_show_a_hundredfold_rank(analysis: Callable[..., deltaw.Analysis]) -> None:
    c = deltaw.compare({"full": analysis(), "LoRA r=64": analysis(adapter="lora", rank=64)})
    found = c.claims().set_index("claim").loc["full-rank-10-to-100-times"]
    assert found["verdict"] == "cannot tell"
    assert "256 singular values, fewer than 10 × 64" in found["says"]
