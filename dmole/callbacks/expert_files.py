"""After each stage: write its experts to files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dmole.callbacks.base import ContinualCallback
from dmole.experts import save_expert
from dmole.run.run_files import RunFile
from dmole.storage.files import write_json

if TYPE_CHECKING:
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState


class ExpertFiles(ContinualCallback):
    """Writes each expert to ``experts/<expert>/``, and the order of all experts."""

    def on_evaluation_end(self, state: SequenceState, module: ContinualModule) -> None:
        """Before training, write an empty list of experts, so that any run folder can be read."""
        if not state.stage.index and not module.library.names:
            state.put(_order([]))

    def on_experts_final(self, state: SequenceState, module: ContinualModule) -> None:
        """Write the trained experts as PEFT adapters, and the order of all experts."""
        experts = (_expert(module, name) for name in module.stage.experts)
        state.put(*experts, _order(module.library.names))

    def run_files(self, state: SequenceState, module: ContinualModule) -> Iterator[RunFile]:
        """Return the experts of all stages that have ended, and their order.

        An expert in training is written again after its stage.
        """
        stages = [stage for stage in state.plan if (stage.index, "router") in state.done]
        written = {name for stage in stages for name in stage.experts}
        if not state.done:
            return
        yield _order([name for name in module.library.names if name in written])
        ended = not state.stage.index or (state.stage.index, "router") in state.done
        training = () if ended else state.stage.experts
        for name in module.library.names:
            if name in written and name not in training:
                yield _expert(module, name)


def _order(names: Sequence[str]) -> RunFile:
    def write(run: Path) -> None:
        write_json(run / "experts" / "experts.json", list(names))

    return RunFile("experts/experts.json", write)


def _expert(module: ContinualModule, name: str) -> RunFile:
    def write(run: Path) -> None:
        save_expert(module.library, name, run / "experts" / name, module.backbone.name_or_path)

    return RunFile(f"experts/{name}", write)
