"""Continual multimodal learning with experts that are allocated, routed and never overwritten."""

from dmole._version import __version__

__all__ = ["__version__"]
