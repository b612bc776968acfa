"""Procedural pictures: the world of the tiny model and small tasks that need no download."""

from __future__ import annotations

from dmole.data.synthetic.generators import GENERATORS
from dmole.data.synthetic.graph_tasks import GRAPH_TASKS
from dmole.data.synthetic.tasks import SPLITS, parse_address, synthetic_samples

__all__ = ["GENERATORS", "GRAPH_TASKS", "SPLITS", "parse_address", "synthetic_samples"]
