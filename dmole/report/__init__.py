"""Figures and comparisons of finished runs. Imports matplotlib, no Lightning."""

from dmole.report.compare import compare
from dmole.report.runs import Run, load_run

__all__ = ["Run", "compare", "load_run"]
