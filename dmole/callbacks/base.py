"""The hooks of a sequence of stages, in addition to Lightning's hooks of one fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from dmole.run.state import SequenceState, sequence_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmole.module import ContinualModule
    from dmole.run.extending import Parent
    from dmole.run.run_files import RunFile


class ContinualCallback(Callback):
    """A callback that also acts at the boundaries of stages.

    The hooks below receive the state of the sequence, a
    :class:`~dmole.run.state.SequenceState`: the current ``stage`` and ``phase``, the whole
    ``plan``, ``run_dir``, ``data``, ``seen_tasks()``, and for distributed training
    ``is_global_zero`` and ``device``. Each hook is called for all callbacks before the next hook,
    so the order of callbacks does not matter. Every rank calls the hooks, after the processes of
    distributed training have been connected.

    Lightning's hooks, such as ``on_train_batch_end``, receive Lightning's trainer;
    :func:`~dmole.run.state.sequence_of` returns its state.

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
        """Act before the training of a stage and before Lightning's ``setup``: place experts."""

    def on_stage_trained(self, state: SequenceState, module: ContinualModule) -> None:
        """Act after the training of a stage, while its experts may still change."""

    def on_experts_final(self, state: SequenceState, module: ContinualModule) -> None:
        """Act after :meth:`on_stage_trained`, when the stage's experts no longer change."""

    def on_evaluation_end(self, state: SequenceState, module: ContinualModule) -> None:
        """Act after the evaluation at the end of a stage, or before the first stage.

        The evaluation matrix already holds the new row.
        """

    def on_sequence_end(self, state: SequenceState, module: ContinualModule) -> None:
        """Act after the last stage."""

    def run_files(self, state: SequenceState, module: ContinualModule) -> Iterable[RunFile]:
        """Return the files of this callback that the run folder must hold now.

        After each phase, at the end and when a run is resumed, the trainer verifies them and
        writes those again that are missing or changed. Write them with ``state.put``, which
        remembers their content.
        """
        return ()

    def sequence_state_dict(self) -> dict[str, Any]:
        """Return state that changes only at the boundaries of stages; saved after each phase.

        The result of ``state_dict`` is also saved within a stage.
        """
        return {}

    def load_sequence_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state that :meth:`sequence_state_dict` returned."""

    def extend_sequence_state(
        self,
        saved: dict[str, Any],
        state: SequenceState,
        module: ContinualModule,
        parent: Parent,
    ) -> dict[str, Any]:
        """Return the sequence state of a finished run as that of a run with more tasks.

        Args:
            saved: What :meth:`sequence_state_dict` returned at the end of the finished run.
            state: Has the plan and the data of the new run, which has not begun.
            module: The module of the new run, without experts.
            parent: The finished run.
        """
        return saved


def parts(trainer: Trainer, pl_module: LightningModule) -> tuple[SequenceState, ContinualModule]:
    """Return the state of the sequence and the module, from the arguments of Lightning's hooks.

    Raises:
        TypeError: If the trainer is a plain Lightning trainer.
    """
    return sequence_of(trainer), cast("ContinualModule", pl_module)
