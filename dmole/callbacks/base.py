"""The hooks of a sequence of stages, beyond Lightning's own hooks of one fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from dmole.run.state import SequenceState, sequence_of

if TYPE_CHECKING:
    from dmole.module import ContinualModule


class ContinualCallback(Callback):
    """A callback that also acts at the boundaries of stages.

    The hooks below receive the state of the sequence, see
    :class:`~dmole.run.state.SequenceState`: the current ``stage`` and ``phase``, the whole
    ``plan``, ``run_dir``, ``data``, ``seen_tasks()``, and of the processes ``is_global_zero`` and
    ``device``. Each hook is called for all callbacks before the next hook, so their order does
    not matter. Every rank calls them, with the processes of distributed training connected.

    Lightning's own hooks, such as ``on_train_batch_end``, receive Lightning's trainer;
    :func:`~dmole.run.state.sequence_of` returns the state that belongs to it.

    Example:
        >>> class Notes(ContinualCallback):
        ...     def on_train_start(self, trainer, pl_module):
        ...         print("training", sequence_of(trainer).stage.name)
        ...
        ...     def on_evaluation_end(self, state, module):
        ...         if state.is_global_zero:
        ...             (state.run_dir / "notes.txt").write_text(" ".join(state.seen_tasks()))
    """

    def on_stage_start(self, state: SequenceState, module: ContinualModule) -> None:
        """Act before a stage's training, which Lightning's ``setup`` begins: place its experts."""

    def on_stage_trained(self, state: SequenceState, module: ContinualModule) -> None:
        """Act after a stage's training, while its experts may still be changed."""

    def on_experts_final(self, state: SequenceState, module: ContinualModule) -> None:
        """Act after :meth:`on_stage_trained`, when the stage's experts do not change any more."""

    def on_evaluation_end(self, state: SequenceState, module: ContinualModule) -> None:
        """Act after the evaluation at the end of a stage (or before the first).

        The evaluation matrix has its new row.
        """

    def on_sequence_end(self, state: SequenceState, module: ContinualModule) -> None:
        """Act after the last stage."""

    def sequence_state_dict(self) -> dict[str, Any]:
        """Return state that changes at the boundaries of stages only; saved after each phase.

        What ``state_dict`` returns is saved in the middle of a stage as well.
        """
        return {}

    def load_sequence_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`sequence_state_dict` returned."""


def parts(trainer: Trainer, pl_module: LightningModule) -> tuple[SequenceState, ContinualModule]:
    """Return the state of the sequence and the module, from what Lightning's hooks receive.

    Raises:
        TypeError: If the callback was given to a plain Lightning trainer.
    """
    return sequence_of(trainer), cast("ContinualModule", pl_module)
