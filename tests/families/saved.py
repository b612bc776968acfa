"""Tiny models in folders, as `PretrainedBackbone` loads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from families.models import make_model
from families.processors import make_processor

Folders = Callable[[str], Path]
"""Gives the folder of a family's model."""


def save_family(family: str, folder: Path) -> Path:
    """Write model and processor of a family and return the folder."""
    processor = make_processor(family)
    make_model(family, processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
