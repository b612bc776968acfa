"""The places of the base model that may hold an expert: linears and the input embedding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import nn

from dmole.experts.expert import LoRAExpert
from dmole.experts.soft_prompts import PromptShape, Shape, SoftPrompt

if TYPE_CHECKING:
    import torch

    from dmole.experts.expert import ExpertPart

Place = nn.Linear | nn.Embedding
"""A module of the base model that holds a low-rank update or a soft prompt."""


def find_place(model: nn.Module, path: str, shape: Shape) -> Place:
    """Return the module of the base model at a path.

    Raises:
        ValueError: If it is missing or of another kind than an expert of this shape needs; names
            the path.
    """
    kind = nn.Embedding if isinstance(shape, PromptShape) else nn.Linear
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"the model has no {kind.__name__.lower()} {path!r}") from error
    return of_kind(module, path, kind)


def of_kind(module: nn.Module, path: str, kind: type[Place]) -> Place:
    """Return a module of some kind.

    Raises:
        ValueError: If it is of another kind; names the path.
    """
    if not isinstance(module, kind):
        found = type(module).__name__
        raise ValueError(f"submodule {path!r} is a {found}, not a {kind.__name__}")
    return module


def check_shape(name: str, path: str, shape: Shape, base: Place) -> None:
    """Raise a `ValueError` if an expert does not fit its place, before memory is allocated."""
    if isinstance(base, nn.Embedding):
        tokens = shape.tokens if isinstance(shape, PromptShape) else 0
        if not 0 < tokens <= base.num_embeddings:
            raise ValueError(
                f"expert {name!r}: a soft prompt of {tokens} tokens in {path}, expected 1 to "
                f"{base.num_embeddings}, the size of the vocabulary"
            )
        return
    assert not isinstance(shape, PromptShape)
    limit = max(base.in_features, base.out_features)
    rank = shape.rank // max(1, shape.heads)  # of each parallel expert
    if rank > limit:
        raise ValueError(f"expert {name!r}: rank {rank} is larger than linear {path} ({limit})")
    if not math.isfinite(shape.alpha):
        raise ValueError(f"expert {name!r}: alpha {shape.alpha} of linear {path} is not finite")


def make_part(base: Place, shape: Shape, generator: torch.Generator) -> ExpertPart:
    """Return the new tensors of an expert at its place, which fits."""
    if isinstance(shape, PromptShape):
        assert isinstance(base, nn.Embedding)
        return SoftPrompt(base, shape, generator)
    assert isinstance(base, nn.Linear)
    return LoRAExpert(base, shape, generator)
