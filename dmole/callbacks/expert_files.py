"""After each stage: write its experts to files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmole.callbacks.base import ContinualCallback
from dmole.experts import save_expert
from dmole.storage.files import write_json

if TYPE_CHECKING:
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState


class ExpertFiles(ContinualCallback):
    """Writes each expert to ``experts/<expert>/``, and the order of all experts."""

    def on_evaluation_end(self, state: SequenceState, module: ContinualModule) -> None:
        """Before training, write an empty list of experts, so that any run folder can be read."""
        if state.is_global_zero and not state.stage.index:
            write_json(state.run_dir / "experts" / "experts.json", [])
            module.router.save(state.run_dir / "router")

    def on_experts_final(self, state: SequenceState, module: ContinualModule) -> None:
        """Write the trained experts as PEFT adapters, and the order of all experts."""
        if state.is_global_zero:
            folder, base = state.run_dir / "experts", module.backbone.name_or_path
            for name in module.stage.experts:
                save_expert(module.library, name, folder / name, base)
            write_json(folder / "experts.json", list(module.library.names))
