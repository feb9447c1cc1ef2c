"""Scores from the files of today's harnesses: their own layouts (`layouts/`), the documented ones, and odd ones."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

import deltaw
from deltaw.comparison.claims import all_claims
from deltaw.comparison.evaluations import Evaluation, Score, mean_score, read_evaluation
from deltaw.comparison.runs import Runs
from deltaw.comparison.score_differences import Weighted, score_combination
from deltaw.errors import ManifestError

LAYOUTS = Path(__file__).parent / "layouts"
HARNESS = LAYOUTS / "lm_eval" / "org__one"
INSPECT = LAYOUTS / "inspect" / "one"


def score(path: Path, *references: str) -> Score:
    return mean_score(read_evaluation(path), references, path.name)


def of_tasks(folder: Path, name: str, model: str = "m", **tasks: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    results = {task: {"acc,none": value, "acc_stderr,none": "N/A"} for task, value in tasks.items()}
    path = folder / name
    path.write_text(json.dumps({"results": results, "model_name": model}))
    return path


def test_what_the_harness_writes() -> None:
    found = read_evaluation(HARNESS)
    assert found.model == "org/one"
    assert {m.name for m in found.metrics} == {"acc", "acc_norm"}, "name, sample_len and sample_count are no metrics"
    assert {m.task for m in found.metrics} == {"tiny_choice", "tiny_other", "tiny_group"}
    group = score(HARNESS, "tiny_group:acc")
    assert group.value == pytest.approx(7 / 12)
    assert group.error == pytest.approx(0.1051, abs=1e-4)
    assert not group.items, "a group's items are its tasks'"


def test_a_group_without_a_number_is_there(tmp_path: Path) -> None:
    results = {"flan": {"alias": "flan", "sample_len": 3}, "arc": {"acc,none": 0.5}}
    (tmp_path / "results.json").write_text(json.dumps({"results": results}))
    for found in (read_evaluation(tmp_path / "results.json"), read_evaluation(tmp_path)):
        with pytest.raises(ManifestError, match="task 'flan' has no number there; name the tasks of this group"):
            mean_score(found, ["flan:acc"], "results.json")


def test_the_items_of_the_harness() -> None:
    found = score(HARNESS, "tiny_choice:acc", "tiny_other:acc_norm")
    assert [i.metric for i in found.items] == ["tiny_choice:acc,none", "tiny_other:acc_norm,none"]
    assert [len(i.values) for i in found.items] == [12, 12]
    assert np.mean([np.mean(i.values) for i in found.items]) == pytest.approx(found.value)
    other = score(LAYOUTS / "lm_eval" / "org__two", "tiny_choice:acc", "tiny_other:acc_norm")
    assert [i.digest for i in other.items] == [i.digest for i in found.items]


def test_what_inspect_writes() -> None:
    found = score(INSPECT, "letters:accuracy,match")
    assert (found.value, found.error) == (0.5, pytest.approx(math.sqrt(1 / 12)))
    assert sorted(found.items[0].values) == [0, 0, 1, 1]
    with pytest.raises(ManifestError, match=r"several filters \(accuracy,includes, accuracy,match\)"):
        score(INSPECT, "letters:accuracy")


def test_scorers_of_several_values_and_several_reducers() -> None:
    """Each value by its name, each reducer's items: grades count as inspect-ai counts them."""
    folder = LAYOUTS / "inspect" / "several"
    parts = [score(folder, f"letters:mean,two/{part}") for part in ("a", "b")]
    assert [p.value for p in parts] == [0.4, 0.5]
    assert [sum(p.items[0].values) for p in parts] == [4, 5]
    for reducer in ("match", "match/max", "match/pass_at_2"):
        found = score(folder, f"epochs:accuracy,{reducer}")
        assert found.value == 0.4
        assert sorted(found.items[0].values) == [0.0] * 6 + [1.0] * 4, reducer
    assert score(folder, "letters:t1").value == score(folder, "letters:accuracy").value == 0.7
    with pytest.raises(ManifestError, match=r"no metric 'mean,two'. Did you mean 'mean,two/b' or 'mean,two/a'\?"):
        score(folder, "letters:mean,two")


def test_an_evaluation_that_did_not_finish(tmp_path: Path) -> None:
    log = next(INSPECT.glob("*.json"))
    shutil.copy(log, tmp_path / log.name)
    document = json.loads(log.read_text())
    (tmp_path / "later.json").write_text(json.dumps(document | {"status": "error"}))
    assert score(tmp_path, "letters:accuracy,match").value == 0.5
    with pytest.raises(ManifestError, match="ended with 'error'; expected 'success'"):
        read_evaluation(tmp_path / "later.json")
    (tmp_path / "log.eval").write_bytes(b"PK")
    with pytest.raises(ManifestError, match=rf"inspect log convert {tmp_path} --to json --output-dir {tmp_path}$"):
        read_evaluation(tmp_path)
    shutil.copy(log, tmp_path / "log.json")
    assert score(tmp_path, "letters:accuracy,match").value == 0.5, "it was converted"


def test_the_hub_s_files(tmp_path: Path) -> None:
    entries = [
        EvalResultEntry(dataset_id="cais/hle", task_id="default", value=20.9, date="2026-01-02"),
        EvalResultEntry(dataset_id="org/gpqa", task_id="diamond", value=0.412),
    ]
    folder = tmp_path / ".eval_results"
    folder.mkdir()
    (folder / "all.yaml").write_text(yaml.dump(eval_result_entries_to_yaml(entries)))
    (tmp_path / "config.yaml").write_text("not: an evaluation")
    assert score(tmp_path, "cais/hle:default").value == 20.9
    assert score(folder / "all.yaml", "org/gpqa:diamond").value == 0.412


def test_the_hub_s_files_of_one_dataset(tmp_path: Path) -> None:
    """Its tasks lie in files of their own; of each the newest counts."""
    folder = tmp_path / ".eval_results"
    folder.mkdir()
    for name, task, value, date in (("a", "diamond", 0.4, 3), ("b", "main", 0.3, 2), ("c", "main", 0.2, 1)):
        entry = EvalResultEntry(dataset_id="org/gpqa", task_id=task, value=value, date=f"2026-01-0{date}")
        (folder / f"{name}.yaml").write_text(yaml.dump(eval_result_entries_to_yaml([entry])))
    assert score(tmp_path, "org/gpqa:diamond").value == 0.4
    assert score(tmp_path, "org/gpqa:main").value == 0.3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: b", "expected a list of objects"),
        ("- [", "not valid YAML"),
        ("- &a {x: 1}\n- *a", "refers to another part"),
        ("- {dataset: {id: 3, task_id: x}, value: 1}", "'id' is 3; expected a text"),
        ("- {dataset: {id: a/b}, value: 1}", "'task_id' is missing"),
        ("- 2026-13-45", "expected a list of objects|cannot be read"),
    ],
)
def test_yaml_that_is_none(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ManifestError, match=words) as e:
        read_evaluation(path)
    assert "a.yaml" in str(e.value)
    assert "\n" not in str(e.value)


def test_every_eval_ever(tmp_path: Path) -> None:
    entry: dict[str, Any] = {
        "evaluation_name": "MMLU",
        "source_data": {"dataset_name": "mmlu", "source_type": "other"},
        "metric_config": {"lower_is_better": False, "score_type": "continuous", "min_score": 0, "max_score": 1},
        "score_details": {"score": 0.7, "uncertainty": {"standard_error": {"value": 0.01}, "num_samples": 100}},
    }
    loss = {"metric_config": {"lower_is_better": True}, "score_details": {"score": 2.5}, "evaluation_name": "loss"}
    document = {
        "schema_version": "0.2.1",
        "evaluation_id": "mmlu/org__m/1767225600",
        "retrieved_timestamp": "1767225600",
        "model_info": {"name": "m", "id": "org/m"},
        "evaluation_results": [entry, entry | loss],
    }
    (tmp_path / "record.json").write_text(json.dumps(document))
    found = score(tmp_path, "MMLU:score")
    assert (found.value, found.error) == (0.7, 0.01)
    assert score(tmp_path, "loss:score").value == -2.5
    assert read_evaluation(tmp_path).created.startswith("2026-01-01T00")


def test_every_eval_ever_of_several_scorers() -> None:
    folder = LAYOUTS / "every_eval_ever"
    found = score(folder, "letters:accuracy,match:accuracy")
    assert (found.value, found.error) == (0.4, pytest.approx(0.1633, abs=1e-4))
    with pytest.raises(ManifestError, match=r"several filters \(accuracy,includes:accuracy, accuracy,match:accuracy\)"):
        score(folder, "letters:accuracy")


def test_tasks_of_several_files_and_the_newest_of_each(tmp_path: Path) -> None:
    of_tasks(tmp_path / "m", "results_2026-01-01T00-00-00.000000.json", old=0.1, same=0.2)
    of_tasks(tmp_path / "m", "results_2026-01-03T00-00-00.000000.json", same=0.4)
    of_tasks(tmp_path / "m", "results_2026-01-02T00-00-00.000000.json", same=0.3, new=0.5)
    (tmp_path / "m" / "config.json").write_text('{"results": "of nothing"}')
    assert [score(tmp_path, f"{t}:acc").value for t in ("old", "same", "new")] == [0.1, 0.4, 0.5]


def test_what_is_newest_has_to_be_known(tmp_path: Path) -> None:
    of_tasks(tmp_path, "results.json", same=0.1)
    of_tasks(tmp_path, "results-again.json", same=0.2, other=0.3)
    with pytest.raises(ManifestError, match=r"'same' is in results.* and neither says when; name one file"):
        read_evaluation(tmp_path)
    of_tasks(tmp_path, "results-again.json", other=0.3)
    assert score(tmp_path, "same:acc", "other:acc").value == pytest.approx(0.2)


def test_two_models_are_not_one_run() -> None:
    with pytest.raises(ManifestError, match=r"evaluations of 2 models \(org/one, org/two\); name the directory of one"):
        read_evaluation(LAYOUTS / "lm_eval")


def test_null_says_nothing_of_the_direction(tmp_path: Path) -> None:
    path = of_tasks(tmp_path, "results.json", a=0.5)
    document = json.loads(path.read_text())
    for better in (None, {"a": None}, {"a": {"acc": None}}, {"a": {"acc": True}}):
        path.write_text(json.dumps(document | {"higher_is_better": better}))
        assert score(path, "a:acc").value == 0.5
    path.write_text(json.dumps(document | {"higher_is_better": {"a": {"acc": False}}}))
    assert score(path, "a:acc").value == -0.5


def samples(folder: Path, name: str, values: list[float], first: int = 0) -> Evaluation:
    """A results file and the samples of one task."""
    path = of_tasks(folder, f"results_2026-01-01T00-00-00.{name}.json", t=float(np.mean(values)))
    lines = [
        json.dumps({"doc_id": first + i, "doc_hash": f"h{i}", "filter": "none", "acc": v}) for i, v in enumerate(values)
    ]
    (folder / f"samples_t_2026-01-01T00-00-00.{name}.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    return read_evaluation(path)


def runs_of(*evaluations: Evaluation) -> Runs:
    from .conftest import score_runs

    runs = score_runs(("full", "full", 0.0, 0.0, {}), ("LoRA", "lora", 0.0, 0.0, {}))
    items = [
        replace(r, spec=replace(r.spec, scores={"learning": mean_score(e, ["t:acc"], "t")}))
        for r, e in zip(runs.items, evaluations, strict=True)
    ]
    return Runs(items, "full")


def test_items_of_both_sides_are_compared_one_by_one(tmp_path: Path) -> None:
    """The same items are hard for both: the error of the differences is far below that of the two means."""
    rng = np.random.default_rng(0)
    a = (rng.random(200) < 0.5).astype(float)
    b = np.where(rng.random(200) < 0.05, 1 - a, a)
    runs = runs_of(samples(tmp_path, "000001", list(a)), samples(tmp_path, "000002", list(b)))
    parts = [Weighted(1.0, runs.items[:1]), Weighted(-1.0, runs.items[1:])]
    found = score_combination(parts, "learning")
    assert found.paired
    assert found.items == pytest.approx(np.std(a - b, ddof=1) / math.sqrt(200), rel=1e-12)
    claim = next(c for c in all_claims(runs, []) if c.claim == "lora-learns-less")
    assert claim.basis == "test items only"
    assert "by the paired test items alone)" in claim.says


def test_items_that_are_not_the_same_are_not_paired(tmp_path: Path) -> None:
    one, other = samples(tmp_path, "000001", [0, 1, 1, 0]), samples(tmp_path, "000002", [1, 1, 0, 0], first=7)
    parts = [Weighted(c, [r]) for c, r in zip((1.0, -1.0), runs_of(one, other).items, strict=True)]
    assert not score_combination(parts, "learning").paired


def test_items_that_do_not_average_to_the_metric_are_left_alone(tmp_path: Path) -> None:
    samples(tmp_path, "000001", [0, 1])
    of_tasks(tmp_path, "results_2026-01-01T00-00-00.000001.json", t=0.75)  # an aggregate that is no mean
    assert score(tmp_path, "t:acc").items == ()
    (tmp_path / "samples_t_2026-01-01T00-00-00.000001.jsonl").write_text('{"doc_id": 0\n')
    with pytest.raises(ManifestError, match=r"samples_t_.*\.jsonl:1: is not valid JSON"):
        score(tmp_path, "t:acc")


def test_items_are_kept_with_a_comparison(tmp_path: Path) -> None:
    text = "".join(
        f'[[runs]]\nname = "{m}"\n[runs.lm_eval]\nfile = "{LAYOUTS}/lm_eval/org__{m}"\nlearning = "tiny_choice:acc"\n'
        for m in ("one", "two")
    )
    (tmp_path / "runs.toml").write_text(text)
    first = deltaw.compare(tmp_path / "runs.toml")
    first.save(tmp_path / "out", report=False)
    again = deltaw.Comparison.load(tmp_path / "out")
    assert [r.spec.scores for r in again.runs_.items] == [r.spec.scores for r in first.runs_.items]
    assert len(first.runs_.items[0].spec.scores["learning"].items[0].values) == 12


@pytest.mark.parametrize("huge", [1e300, -1e200, 1e61, 10**400])
def test_scores_beyond_all_measure(tmp_path: Path, huge: float) -> None:
    """Squares and sums of them would overflow: they are no scores, as errors they are not known."""
    path = of_tasks(tmp_path, "results_a.json", one=huge)
    with pytest.raises(ManifestError, match=r"one:acc,none is .*expected a finite number"):
        score(path, "one:acc")
    known = {"one": {"acc,none": 0.5, "acc_stderr,none": huge}}
    path.write_text(json.dumps({"results": known, "model_name": "m"}))
    assert math.isnan(score(path, "one:acc").error)
