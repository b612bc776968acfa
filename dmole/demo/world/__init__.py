"""Procedural images: the world of the tiny model, and small tasks without downloads."""

from __future__ import annotations

from dmole.demo.world.generators import GENERATORS
from dmole.demo.world.graph_tasks import GRAPH_TASKS
from dmole.demo.world.tasks import SPLITS, parse_address, synthetic_samples

__all__ = ["GENERATORS", "GRAPH_TASKS", "SPLITS", "parse_address", "synthetic_samples"]
