"""The hooks of a sequence of stages, beyond Lightning's own hooks of one fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

if TYPE_CHECKING:
    from dmole.datamodule import ContinualDataModule
    from dmole.module import ContinualModule
    from dmole.trainer import ContinualTrainer


class ContinualCallback(Callback):
    """A callback that also acts at the boundaries of stages.

    The trainer calls these hooks on every rank, with the processes of distributed training
    already connected.
    """

    def on_stage_trained(self, trainer: ContinualTrainer, module: ContinualModule) -> None:
        """Act after a stage's training, before its evaluation."""

    def on_evaluation_end(self, trainer: ContinualTrainer, module: ContinualModule) -> None:
        """Act after the evaluation of all tasks at the end of a stage (or before the first)."""

    def sequence_state_dict(self) -> dict[str, Any]:
        """Return state that changes at the boundaries of stages only; saved after each phase.

        What ``state_dict`` returns is saved in the middle of a stage as well.
        """
        return {}

    def load_sequence_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`sequence_state_dict` returned."""

    def on_sequence_end(self, trainer: ContinualTrainer, module: ContinualModule) -> None:
        """Act after the last stage."""


def parts(
    trainer: Trainer, module: LightningModule
) -> tuple[ContinualTrainer, ContinualModule, ContinualDataModule]:
    """Return trainer, module and datamodule as what they are.

    Raises:
        TypeError: If the callback was given to a plain Lightning trainer.
    """
    if not hasattr(trainer, "run_dir"):
        raise TypeError(
            f"this callback needs a dmole.ContinualTrainer, not a {type(trainer).__name__}"
        )
    continual = cast("ContinualTrainer", trainer)
    return continual, cast("ContinualModule", module), continual.data
