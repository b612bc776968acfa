"""The three parts of a multimodal model, as allocation, experts and optimizer name them."""

from __future__ import annotations

from typing import Literal, get_args

Modality = Literal["vision", "projector", "language"]
"""The part of the model that a block or linear is in.

It tells what the rows of a linear's input are: images, tiles or patches in the vision tower, text
sequences in the language model. A projector may see several rows of the vision tower as one, where
patches are merged.
"""

MODALITIES: tuple[Modality, ...] = get_args(Modality)
"""All of them, in the order of the data."""
