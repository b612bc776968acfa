"""A 2-million-parameter vision language model that ships with the library, and how it was made."""

from __future__ import annotations

from pathlib import Path

TINY_PATH = Path(__file__).resolve().parent / "weights"
"""Folder of the shipped model; give it to any `from_pretrained`."""

__all__ = ["TINY_PATH"]
