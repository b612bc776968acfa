"""Sizes of the updates that experts make to the weights of their linears."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dmole.experts.expert import LoRAExpert
    from dmole.experts.library import ExpertLibrary
    from dmole.modality import Modality


def squared_norm(expert: LoRAExpert) -> Tensor:
    r"""Return the squared Frobenius norm of the update of one linear, without forming it.

    .. math:: \|s B A\|_F^2 = s^2 \sum_{ij} (A A^T)_{ij} (B^T B)_{ij}

    Args:
        expert: Its tensors ``A``, ``(rank, in)``, and ``B``, ``(out, rank)``; of several
            branches the squared norms are added.

    Returns:
        A scalar, float64; 0 for a router alone.
    """
    if not expert.rank:
        return torch.zeros((), dtype=torch.float64)
    down = expert.lora_a.detach().double()  # (rank, in)
    up = expert.up.detach().double().reshape(-1, expert.rank)  # (out * branches, rank)
    products = (down @ down.T) * (up.T @ up)  # (rank, rank)
    return products.sum() * expert.scaling**2


def update_norms(library: ExpertLibrary, name: str) -> dict[Modality, list[float]]:
    """Return the Frobenius norm of the update of each linear that holds an expert, by modality.

    Args:
        library: Holds the expert.
        name: Name of the expert.
    """
    squares: dict[Modality, list[Tensor]] = {}
    for path, expert in library.experts(name):
        squares.setdefault(library.modality(path), []).append(squared_norm(expert))
    # rounding may make a square of zero negative
    return {key: torch.stack(each).clamp_min(0).sqrt().tolist() for key, each in squares.items()}
