"""After each stage: write what its experts have learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmole.callbacks.base import ContinualCallback
from dmole.experts import save_expert
from dmole.storage.files import write_json

if TYPE_CHECKING:
    from dmole.module import ContinualModule
    from dmole.trainer import ContinualTrainer


class ExpertFiles(ContinualCallback):
    """Writes ``experts/<task>/`` and the order of all experts.

    Comes after the regularizers, which may freeze parts of an expert once its stage is over.
    """

    def on_evaluation_end(self, trainer: ContinualTrainer, module: ContinualModule) -> None:
        """Say at the start that there are no experts yet, so that any run folder can be read."""
        if trainer.is_global_zero and not trainer.current_stage.index:
            write_json(trainer.run_dir / "experts" / "experts.json", [])
            module.router.save(trainer.run_dir / "router")

    def on_stage_trained(self, trainer: ContinualTrainer, module: ContinualModule) -> None:
        """Write the trained expert as a PEFT adapter, and the order of all experts."""
        if trainer.is_global_zero:
            folder, base = trainer.run_dir / "experts", module.backbone.name_or_path
            for name in module.training_experts:
                save_expert(module.library, name, folder / name, base)
            write_json(folder / "experts.json", list(module.library.names))
