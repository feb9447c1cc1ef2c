"""Scores of a run, from the files that evaluation harnesses leave: one list of metrics, whatever wrote them."""

from deltaw.comparison.evaluations.items import Items
from deltaw.comparison.evaluations.metrics import Evaluation, Score, TaskMetric, mean_score
from deltaw.comparison.evaluations.reading import read_evaluation

__all__ = ["Evaluation", "Items", "Score", "TaskMetric", "mean_score", "read_evaluation"]
