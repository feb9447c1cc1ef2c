"""What each test item scored: with the same items on both sides, a difference is known far better than its two means.

lm-evaluation-harness writes them with `--log_samples`: one JSON object in each line of `samples_TASK_TIME.jsonl`, with
the item's number and hash (`doc_id`, `doc_hash`), the filter, and each metric by its name. inspect-ai keeps them in the
log: `reductions` has one value for each sample of each scorer.
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
        if reduction_key(reduction) == chosen:
            for sample in reduction.inners("samples"):
                value = sample.values.get("value")
                if is_score(value):
                    yield str(sample.values.get("sample_id")), float(value)


def reduction_key(scorer: Document) -> str:
    """What tells a scorer of an inspect-ai log from others: `match`; with a reducer other than the mean `match/max`."""
    reducer = scorer.text("reducer")
    name = scorer.text("scorer") or scorer.text("name")
    return f"{name}/{reducer}" if reducer not in {"", "mean"} else name
