"""When things happen: before, during and after the stages of a sequence."""

from lightning.pytorch import Callback

from dmole.callbacks.base import ContinualCallback
from dmole.callbacks.curriculum import Curriculum
from dmole.callbacks.evaluation_matrix import EvaluationMatrix
from dmole.callbacks.expert_allocation import ExpertAllocation
from dmole.callbacks.expert_files import ExpertFiles
from dmole.callbacks.expert_inspector import ExpertInspector
from dmole.callbacks.progress import StageProgressBar
from dmole.callbacks.regularization import Regularization
from dmole.callbacks.replay_record import ReplayRecord
from dmole.callbacks.router_fitting import RouterFitting
from dmole.callbacks.stage_checkpoint import StageCheckpoint

__all__ = [
    "ContinualCallback",
    "Curriculum",
    "EvaluationMatrix",
    "ExpertAllocation",
    "ExpertFiles",
    "ExpertInspector",
    "Regularization",
    "ReplayRecord",
    "RouterFitting",
    "StageCheckpoint",
    "StageProgressBar",
    "default_callbacks",
]


def default_callbacks(callbacks: list[Callback], *, progress_bar: bool) -> list[Callback]:
    """Return the callbacks every sequence needs, each replaced where one of its type is given.

    Args:
        callbacks: The user's.
        progress_bar: Whether a progress bar is wanted.
    """
    standard: list[type[Callback]] = [
        ExpertAllocation,
        Regularization,
        ExpertFiles,
        ReplayRecord,
        RouterFitting,
        EvaluationMatrix,
        ExpertInspector,
    ]
    if progress_bar:
        standard.append(StageProgressBar)
    missing = [kind() for kind in standard if not any(isinstance(c, kind) for c in callbacks)]
    # the order matters: an expert must exist before the curriculum or the inspector look at it
    ordered = [c for kind in standard for c in [*missing, *callbacks] if isinstance(c, kind)]
    return [*ordered, *(c for c in callbacks if c not in ordered)]
