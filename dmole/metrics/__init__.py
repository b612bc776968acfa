"""Task metrics (how well one test set is answered) and continual metrics (over stages)."""

from dmole.metrics.base import TaskMetric, TaskScore
from dmole.metrics.continual import (
    accuracy,
    average,
    backward_transfer,
    forgetting,
    last,
    mean_average_accuracy,
    seen_means,
    transfer,
)
from dmole.metrics.matrix_file import read_matrix, write_matrix
from dmole.metrics.summary import summarize
from dmole.metrics.task_metrics import (
    CIDEr,
    Contains,
    ExactMatch,
    IoU,
    VQASoft,
    build_metric,
)

__all__ = [
    "CIDEr",
    "Contains",
    "ExactMatch",
    "IoU",
    "TaskMetric",
    "TaskScore",
    "VQASoft",
    "accuracy",
    "average",
    "backward_transfer",
    "build_metric",
    "forgetting",
    "last",
    "mean_average_accuracy",
    "read_matrix",
    "seen_means",
    "summarize",
    "transfer",
    "write_matrix",
]
