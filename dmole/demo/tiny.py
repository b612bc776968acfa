"""The vision language model of 2 million parameters that ships with the library."""

from __future__ import annotations

from pathlib import Path

TINY_PATH = Path(__file__).resolve().parent / "weights"
"""Folder of the shipped model; pass it to any `from_pretrained`."""

__all__ = ["TINY_PATH"]
