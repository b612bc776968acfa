"""An inspector without pictures, which would take most of a short run's time."""

from __future__ import annotations

from typing import Any

from dmole.callbacks import ExpertInspector


class NoFigures(ExpertInspector):
    """Logs the scalars of training alone."""

    def on_evaluation_end(self, state: Any, module: Any) -> None:
        pass
