"""An inspector without pictures, which would take much of a short run's time."""

from __future__ import annotations

from typing import Any

from dmole.callbacks import ExpertInspector


class NoFigures(ExpertInspector):
    """Logs scalars and histograms alone."""

    def __init__(self) -> None:
        super().__init__(stage_figures=0)

    def on_sequence_end(self, state: Any, module: Any) -> None:
        pass
