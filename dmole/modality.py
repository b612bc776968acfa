"""The three modalities of a model, as allocation, experts and optimizer name them."""

from __future__ import annotations

from typing import Literal, get_args

Modality = Literal["vision", "projector", "language"]
"""The part of the model that a block or linear belongs to.

It determines the rows of a linear's input: images, tiles or patches in the vision encoder, text
sequences in the language model. A projector that merges patches sees several rows of the vision
encoder as one.
"""

MODALITIES: tuple[Modality, ...] = get_args(Modality)
"""All modalities, in the order of the data flow."""

INPUT = "language.input"
"""Name of the unit of soft prompts: the input embedding of the language model."""
