"""Callbacks that act before, during and after the stages of a sequence."""

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint, ProgressBar

from dmole.callbacks.base import ContinualCallback
from dmole.callbacks.case_images import CaseImages
from dmole.callbacks.curriculum import Curriculum
from dmole.callbacks.evaluation_matrix import EvaluationMatrix
from dmole.callbacks.expert_allocation import ExpertAllocation
from dmole.callbacks.expert_files import ExpertFiles
from dmole.callbacks.expert_inspector import ExpertInspector
from dmole.callbacks.gradient_rules import GradientRules
from dmole.callbacks.progress_displays import (
    RichStageProgressBar,
    StageProgressBar,
    StageProgressLines,
    standard_progress,
)
from dmole.callbacks.regularization import Regularization
from dmole.callbacks.replay_record import ReplayRecord
from dmole.callbacks.report_page import ReportPage
from dmole.callbacks.router_fitting import RouterFitting
from dmole.callbacks.segments import SegmentRecord
from dmole.callbacks.skipped_steps import SkippedSteps
from dmole.callbacks.stage_checkpoint import StageCheckpoint
from dmole.callbacks.training_routing import TrainingRouting

__all__ = [
    "CaseImages",
    "ContinualCallback",
    "Curriculum",
    "EvaluationMatrix",
    "ExpertAllocation",
    "ExpertFiles",
    "ExpertInspector",
    "GradientRules",
    "Regularization",
    "ReplayRecord",
    "ReportPage",
    "RichStageProgressBar",
    "RouterFitting",
    "SegmentRecord",
    "SkippedSteps",
    "StageCheckpoint",
    "StageProgressBar",
    "StageProgressLines",
    "TrainingRouting",
    "default_callbacks",
]


def default_callbacks(
    callbacks: list[Callback],
    *,
    progress_bar: bool,
    checkpoint_every_n_steps: int,
    case_images: int,
    report: bool,
) -> list[Callback]:
    """Return the callbacks of a sequence: the standard ones and the user's.

    A user's callback replaces the standard callback of its type, and any progress bar of Lightning
    the standard progress. The order of the callbacks does not matter; Lightning runs the checkpoint
    last.

    Args:
        callbacks: The user's callbacks.
        progress_bar: Whether to show the progress, as a bar on a terminal and else as lines.
        checkpoint_every_n_steps: Optimizer steps between two checkpoints within a stage.
        case_images: Test samples of each task whose images are kept for reports.
        report: Whether to write the HTML page of the run.

    Raises:
        ValueError: If a callback is a checkpoint callback other than `StageCheckpoint`.
    """
    for callback in callbacks:
        if isinstance(callback, Checkpoint) and not isinstance(callback, StageCheckpoint):
            kind = type(callback).__name__
            raise ValueError(f"trainer.callbacks: a sequence is saved without {kind}; leave it out")
    shows = progress_bar and not any(isinstance(callback, ProgressBar) for callback in callbacks)
    standard: list[Callback] = [
        ExpertAllocation(),
        Regularization(),
        ExpertFiles(),
        ReplayRecord(),
        RouterFitting(),
        SegmentRecord(),
        SkippedSteps(),
        TrainingRouting(),
        EvaluationMatrix(),
        CaseImages(case_images),
        ExpertInspector(),
        *([ReportPage()] if report else []),
        *([standard_progress()] if shows else []),
        StageCheckpoint(checkpoint_every_n_steps),
    ]
    replaced = [cb for cb in standard if any(isinstance(other, type(cb)) for other in callbacks)]
    return [*(callback for callback in standard if callback not in replaced), *callbacks]
