"""What each test item scored: with the same items on both sides, a difference is known far better than its two means.

lm-evaluation-harness writes them with `--log_samples`: one JSON object in each line of `samples_TASK_TIME.jsonl`, with
the item's number and hash (`doc_id`, `doc_hash`), the filter, and each metric by its name. inspect-ai keeps them in the
log: `reductions` has the value of each sample for each scorer, or its values by name.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deltaw.documents import Document, is_score, parse_object, read_object
from deltaw.errors import ManifestError

SAME = 1e-6  # relative: by so much the mean of the items may differ from the metric that was reported
LONGEST_LINE = 64 << 20  # characters of one item
GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}  # inspect-ai's correct, partial, incorrect and no answer


@dataclass(frozen=True)
class Items:
    """What the test items of one metric scored, higher for better, in the order of their keys.

    Attributes:
        metric: `task:metric,filter`.
        digest: Of the items' keys: two runs with the same one were asked the same.
        values: One for each item.
    """

    metric: str
    digest: str
    values: tuple[float, ...]


def read_items(path: Path, metric: str, lower_is_better: bool, mean: float) -> Items | None:
    """What each item scored on one metric.

    Args:
        path: `samples_*.jsonl`, or an inspect-ai log.
        metric: `task:metric,filter`.
        lower_is_better: Whether to turn the sign.
        mean: The reported value, higher for better.

    Returns:
        None where the file does not have them, or the metric is no mean of them (a perplexity, a corpus's F1).

    Raises:
        ManifestError: The file cannot be read.
    """
    name, _, chosen = metric.partition(":")[2].partition(",")
    entries = _inspect(path, chosen) if path.suffix == ".json" else _harness(path, name, chosen)
    found = dict(entries)
    sign = -1.0 if lower_is_better else 1.0
    values = tuple(sign * found[key] for key in sorted(found))
    if len(values) < 2 or not math.isclose(math.fsum(values) / len(values), mean, rel_tol=SAME, abs_tol=SAME):
        return None
    digest = hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()
    return Items(metric, digest, values)


def _harness(path: Path, name: str, chosen: str) -> Iterator[tuple[str, float]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), ""), 1):
                if not line.strip():
                    continue
                item = parse_object(line, f"{path}:{number}", error=ManifestError)
                value = item.values.get(name)
                if item.text("filter", "none") == (chosen or "none") and (isinstance(value, bool) or is_score(value)):
                    yield f"{item.values.get('doc_id')} {item.values.get('doc_hash')}", float(value)
    except (OSError, UnicodeDecodeError) as e:
        raise ManifestError(f"{path}: cannot be read ({e}); move it away to go without its items") from e


def _inspect(path: Path, chosen: str) -> Iterator[tuple[str, float]]:
    for reduction in read_object(path, error=ManifestError).inners("reductions"):
        for sample in reduction.inners("samples"):
            value = sample.values.get("value")
            parts = value if isinstance(value, dict) else {"": value}
            for part, found in parts.items():
                found = GRADES.get(found, found) if isinstance(found, str) else found
                if scorer_key(reduction, part) == chosen and is_score(found):
                    yield str(sample.values.get("sample_id")), float(found)


def scorer_key(scorer: Document, part: str = "") -> str:
    """What tells a score of an inspect-ai log from others of its metric: `match`; of several values of one scorer each.

    Args:
        scorer: An entry of `scores`, or of `reductions`.
        part: The name of one of the scorer's values, where the entry does not have it.

    Returns:
        `match`; `graded/clarity` for one value of several; with a reducer other than the mean `match/max`.
    """
    reducer = scorer.text("reducer")
    name, own = scorer.text("scorer"), part or scorer.text("name")
    words = [name, own if own != name else "", reducer if reducer != "mean" else ""]
    return "/".join(word for word in words if word)
