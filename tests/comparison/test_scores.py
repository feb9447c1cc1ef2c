import json
import math
from pathlib import Path
from typing import Any

import pytest

from deltaw.comparison.evaluations import Evaluation, mean_score, read_evaluation
from deltaw.comparison.evaluations.formats import harness
from deltaw.comparison.manifest import read_manifest
from deltaw.documents import Document
from deltaw.errors import ManifestError

# The layout that lm-evaluation-harness 0.4 writes, shortened.
DOCUMENT: dict[str, Any] = {
    "results": {
        "arc_challenge": {"alias": "arc_challenge", "acc_norm,none": 0.44, "acc_norm_stderr,none": 0.03},
        "hellaswag": {"alias": "hellaswag", "acc_norm,none": 0.74, "acc_norm_stderr,none": 0.04},
        "winogrande": {"alias": "winogrande", "acc,none": 0.69, "acc_stderr,none": 0.012},
        "humaneval": {"alias": "humaneval", "pass@1,create_test": 0.263, "pass@1_stderr,create_test": "N/A"},
        "gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.29, "exact_match,flexible-extract": 0.31},
        "wikitext": {"alias": "wikitext", "word_perplexity,none": 8.7, "word_perplexity_stderr,none": "N/A"},
        "mmlu": {"alias": "mmlu", "acc,none": 0.45, "acc_stderr,none": 0.004},
        "broken": {"alias": "broken", "acc,none": float("nan"), "f1,none": " "},
    },
    "groups": {"mmlu": {"alias": "mmlu", "acc,none": 0.45, "acc_stderr,none": 0.004}, "only_group": {"acc,none": 0.5}},
    "group_subtasks": {"mmlu": ["mmlu_law"], "hellaswag": []},
    "configs": {"hellaswag": {"task": "hellaswag", "num_fewshot": 0}},
    "versions": {"hellaswag": 1.0},
    "n-shot": {"hellaswag": 0},
    "higher_is_better": {"hellaswag": {"acc": True, "acc_norm": True}, "wikitext": {"word_perplexity": False}},
    "n-samples": {"hellaswag": {"original": 10042, "effective": 10042}},
    "config": {"model": "hf"},
    "git_hash": "0000000",
    "lm_eval_version": "0.4.9",
}  # fmt: skip


def value(*references: str) -> tuple[float, float]:
    found = harness(Document(DOCUMENT, "results.json", ManifestError), Path("results.json"))
    score = mean_score(found, references, "results.json")
    return score.value, score.error


def test_one_task() -> None:
    assert value("hellaswag:acc_norm") == (0.74, 0.04)
    assert value("hellaswag:acc_norm,none") == (0.74, 0.04)
    assert value("only_group:acc")[0] == 0.5
    assert value("mmlu:acc") == (0.45, 0.004)


def test_several_tasks_are_averaged_with_their_error() -> None:
    mean, error = value("hellaswag:acc_norm", "arc_challenge:acc_norm")
    assert mean == pytest.approx((0.74 + 0.44) / 2)
    assert error == pytest.approx(0.05 / 2)


def test_a_filter_that_is_not_none() -> None:
    found, error = value("humaneval:pass@1")
    assert found == 0.263
    assert math.isnan(error)  # "N/A"


def test_of_a_perplexity_less_is_better() -> None:
    assert value("wikitext:word_perplexity")[0] == -8.7


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("helaswag:acc", ["no task 'helaswag'", "'hellaswag'"]),
        ("boolq:acc", ["no task 'boolq'", "arc_challenge"]),
        ("winogrande:acc_norm", ["no metric 'acc_norm'", "'acc'"]),
        ("gsm8k:exact_match", ["several filters", "exact_match,flexible-extract", "name one"]),
        ("gsm8k:exact_match,strict", ["no metric"]),
        ("hellaswag", ['expected "task:metric"']),
        ("broken:acc", ["NaN", "finite"]),
        ("broken:f1", ['" "', "finite"]),
        ("hellaswag:alias", ["no metric"]),
    ],
)
def test_what_is_not_there(reference: str, words: list[str]) -> None:
    with pytest.raises(ManifestError) as e:
        value(reference)
    for word in ("results.json", *words):
        assert word in str(e.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    for name, text, words in (
        ("a.json", "{", "not valid JSON"),
        ("b.json", "[]", "expected an object"),
        ("c.json", '{"results": []}', 'no "results" object'),
        ("samples.jsonl", '{"doc_id": 0}\n{"doc_id": 1}\n', "not valid JSON.*not samples_"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ManifestError, match=words):
            read_evaluation(tmp_path / name)
    with pytest.raises(ManifestError, match="no such file"):
        read_evaluation(tmp_path / "none.json")


def test_the_output_directory(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "org__model"
    folder.mkdir(parents=True)
    with pytest.raises(ManifestError, match=r"0 finished evaluations"):
        read_evaluation(tmp_path / "out")
    (folder / "results_2026-01-01T00-00-00.000000.json").write_text(json.dumps(DOCUMENT))
    assert "hellaswag" in tasks(read_evaluation(tmp_path / "out"))


def tasks(found: Evaluation) -> set[str]:
    return {metric.task for metric in found.metrics}


def test_in_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(DOCUMENT))
    path = tmp_path / "runs.toml"
    text = """[[runs]]
name = "a"
[runs.lm_eval]
file = "r.json"
learning = "humaneval:pass@1"
retention = ["hellaswag:acc_norm", "winogrande:acc", "arc_challenge:acc_norm"]
"""
    path.write_text(text)
    scores = read_manifest(path).runs[0].scores
    assert scores["learning"].value == 0.263
    assert scores["retention"].value == pytest.approx((0.74 + 0.69 + 0.44) / 3)
    path.write_text(text.replace("winogrande", "wino"))
    with pytest.raises(ManifestError, match=r"runs\.toml:6: run 'a': r\.json: no task 'wino'"):
        read_manifest(path)
    path.write_text(text + "[runs.scores]\nlearning = 0.1\n")
    with pytest.raises(ManifestError, match="given in scores and in lm_eval"):
        read_manifest(path)
