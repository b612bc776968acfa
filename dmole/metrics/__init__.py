"""Task metrics (scores of one test set) and continual metrics (over stages)."""

from typing import Any

from dmole._moved import moved_name
from dmole.metrics.base import ProfileScore, TaskMetric, TaskScore, scoring_facts
from dmole.metrics.continual import (
    accuracy,
    average,
    backward_transfer,
    forgetting,
    last,
    learning_accuracy,
    transfer,
)
from dmole.metrics.matrix_file import read_matrix, write_matrix
from dmole.metrics.seen_tasks import mean_average_accuracy, seen_means
from dmole.metrics.summary import retention, summarize
from dmole.metrics.task_metrics import (
    BLEU4,
    METEOR,
    ROUGEL,
    CIDEr,
    Contains,
    ExactMatch,
    IoU,
    VQASoft,
)

__all__ = [
    "BLEU4",
    "METEOR",
    "ROUGEL",
    "CIDEr",
    "Contains",
    "ExactMatch",
    "IoU",
    "ProfileScore",
    "TaskMetric",
    "TaskScore",
    "VQASoft",
    "accuracy",
    "average",
    "backward_transfer",
    "forgetting",
    "last",
    "learning_accuracy",
    "mean_average_accuracy",
    "read_matrix",
    "retention",
    "scoring_facts",
    "seen_means",
    "summarize",
    "transfer",
    "write_matrix",
]


def __getattr__(name: str) -> Any:
    return moved_name(__name__, name)
