"""How published benchmarks lay out their files, each turned into one form of items."""

from dmole.benchmarks.layouts.registry import LAYOUTS

__all__ = ["LAYOUTS"]
