"""Calls the regularizers before, during and after the training of each stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer

from dmole.callbacks.base import ContinualCallback, parts
from dmole.experts.library import eval_mode
from dmole.models.recomputation import recomputed_in_evaluation
from dmole.regularizers.base import StageView
from dmole.storage.seeds import derive_seed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dmole.data import Batch
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState


class Regularization(ContinualCallback):
    """Calls the module's regularizers before, during and after the training of a stage.

    The first call is in ``setup``, after the stage's experts are placed and before Lightning wraps
    the model for distributed training, so the wrapped model includes parameters of regularizers.
    """

    def __init__(self) -> None:
        self._last_step = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare the regularizers."""
        if stage == "fit":
            state, module = parts(trainer, pl_module)
            for term in module.regularizers:
                term.before_stage(_view(state, module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step at which the stage starts or resumes."""
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let the regularizers act between two steps, before a checkpoint is written."""
        _, module = parts(trainer, pl_module)
        if trainer.global_step == self._last_step:
            return  # the gradients of the step are not complete
        self._last_step = trainer.global_step
        for term in module.regularizers:
            term.after_step()

    def on_stage_trained(self, state: SequenceState, module: ContinualModule) -> None:
        """Let the regularizers act after training; a resumed run may do this in a new process."""
        if not len(module.regularizers):
            return
        module.to(state.device)
        backbone = module.backbone
        recomputed = recomputed_in_evaluation(backbone.model)  # a term may differentiate
        with eval_mode(backbone), recomputed, backbone.evaluating():
            for term in module.regularizers:
                term.after_stage(_view(state, module))
        state.interruption.check(state.strategy)


def _view(state: SequenceState, module: ContinualModule) -> StageView:
    stage, data = state.stage, state.data

    def samples(count: int, batch_size: int) -> Iterator[Batch]:
        items = data.arriving_items(stage)
        generator = torch.Generator().manual_seed(derive_seed(module.seed, "sample", stage.index))
        chosen = torch.randperm(len(items), generator=generator)[:count].sort().values.tolist()
        loader = data.embedding_loader(
            [items[index] for index in chosen], shard=True, batch_size=batch_size
        )
        for batch in state.until_requested(loader, module):
            yield move_data_to_device(batch, state.device)

    return StageView(
        library=module.library,
        experts=module.stage.experts,
        index=stage.index,
        tasks=stage.tasks,
        all_tasks=tuple(data.training_task_names),
        samples=samples,
        step=module.compute_step,
    )
