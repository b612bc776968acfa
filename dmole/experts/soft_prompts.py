"""Soft prompts: experts that are learned tokens in the input of the language model.

::

    input of a sample        <s> [image] What is it ?
    with its soft prompts    <s> p_1 ... p_n [image] What is it ?

Placeholder tokens are inserted into the processed batch (:mod:`dmole.models.insertion`), so that
the base model computes positions and masks as for any text. The input embedding then returns the
learned vectors at their places.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dmole.experts.expert import ExpertPart, expert_key, expert_name
from dmole.experts.shape import ExpertShape

if TYPE_CHECKING:
    from dmole.experts.gates import GateContext, Gates
    from dmole.modality import Modality

NONE = -1
"""Row of a place without a soft prompt token."""


@dataclass(frozen=True)
class PromptShape:
    """Shape of an expert that is a soft prompt.

    Args:
        tokens: Number of its tokens, at least 1.
    """

    tokens: int

    @property
    def channels(self) -> int:
        """Low-rank channels: none."""
        return 0

    def count(self, in_features: int, out_features: int) -> int:
        """Return the number of parameters for an input embedding of width ``out_features``.

        Example:
            >>> PromptShape(10).count(4096, 4096)
            40960
        """
        return self.tokens * out_features

    def to_list(self) -> list[float]:
        """Return plain numbers: the number of tokens alone."""
        return [self.tokens]


Shape = ExpertShape | PromptShape
"""Shape of an expert at one place of the model."""


def shape_from_list(numbers: Sequence[float]) -> Shape:
    """Return the shape from the numbers of its ``to_list``."""
    if len(numbers) == 1:
        return PromptShape(int(numbers[0]))
    return ExpertShape.from_list(numbers)


class SoftPrompt(ExpertPart):
    """One expert in the input of the language model: ``tokens`` vectors of its width.

    Args:
        base: The input embedding of the base model.
        shape: Number of tokens.
        generator: Draws the tokens of the vocabulary whose embeddings are the initial vectors.

    Source:
        ModalPrompt, 2025, https://arxiv.org/abs/2410.05849: initial vectors of random tokens of
        the vocabulary (authors' code).
    """

    def __init__(self, base: nn.Embedding, shape: PromptShape, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        ids = torch.randint(base.num_embeddings, (shape.tokens,), generator=generator)
        with torch.no_grad():  # as the model reads them, a scale of the embedding included
            start = base(ids.to(base.weight.device))  # (tokens, width)
        self.tokens = nn.Parameter(start.detach().float().clone())


class PromptedEmbedding(nn.Module):
    """The input embedding of the base model and the soft prompts of the experts.

    Of the soft prompts of a sample, that of the best expert by the gates' order is the last one,
    next to the question. Without an order it is that of the newest expert.

    Args:
        base: The input embedding of the base model; wrapped, never changed.
        context: Holds the gates of the current forward.
        modality: Part of the model that the embedding is in.
        path: Full path of the embedding.

    Attributes:
        learners: Names of the experts that may train; None if any may.
    """

    def __init__(
        self, base: nn.Embedding, context: GateContext, modality: Modality, path: str = ""
    ) -> None:
        super().__init__()
        self.base = base
        self.modality = modality
        self.experts = nn.ModuleDict()
        self.path = path
        self.learners: tuple[str, ...] | None = None
        self._context = context

    @property
    def weight(self) -> Tensor:
        """Weight of the base embedding; some models read the dtype of it."""
        return self.base.weight

    @property
    def num_embeddings(self) -> int:
        """Size of the vocabulary."""
        return self.base.num_embeddings

    @property
    def embedding_dim(self) -> int:
        """Width of a token."""
        return self.base.embedding_dim

    @property
    def in_features(self) -> int:
        """Width of a token, as :meth:`PromptShape.count` takes it."""
        return self.base.embedding_dim

    @property
    def out_features(self) -> int:
        """Width of a token."""
        return self.base.embedding_dim

    def expert(self, name: str) -> SoftPrompt:
        """Return an expert by name; KeyError if there is none."""
        return cast("SoftPrompt", self.experts[expert_key(name)])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the experts with a soft prompt, in the order they were added."""
        return tuple(expert_name(key) for key in self.experts)

    def rows(self) -> Tensor | None:
        """Return the soft prompt tokens that each sample of the current gates uses.

        Returns:
            ``(B, N)`` rows of the joined soft prompts of the batch, in order, `NONE` where a sample
            uses fewer than ``N``; on the CPU. None if no sample uses one.

        Raises:
            ValueError: If the gates differ by token, or a soft prompt has a weight other than 1.
        """
        gates = self._context.current
        used = self._used(gates)
        if gates is None or not used:
            return None
        if gates.weights.ndim == 3:
            raise ValueError("soft prompts are chosen by sample, the gates differ by token")
        ends = list(itertools.accumulate(self._size(name) for name in used))
        rows = {
            name: range(end - self._size(name), end) for name, end in zip(used, ends, strict=True)
        }
        samples = [list(itertools.chain(*map(rows.__getitem__, n))) for n in _chosen(gates, used)]
        width = max(map(len, samples))
        return torch.tensor([row + [NONE] * (width - len(row)) for row in samples])

    def place(self, index: Tensor) -> None:
        """Tell where the soft prompt tokens are in the batch of the current gates.

        Args:
            index: ``(B, T)`` rows of the joined soft prompts, `NONE` at all other tokens.
        """
        gates = self._context.current
        assert gates is not None
        gates.placed = index

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embeddings of tokens, with the soft prompts at their places.

        Args:
            ids: ``(rows, T)`` token ids.

        Returns:
            Tensor of shape ``(rows, T, width)``.

        Raises:
            ValueError: If a sample uses soft prompts that were not inserted.
        """
        out: Tensor = self.base(ids)  # (rows, T, width)
        gates = self._context.current
        used = self._used(gates)
        if gates is None or not used:
            return out
        if gates.placed is None:
            raise ValueError("the batch has no places for the soft prompts of its samples")
        index = gates.placed  # (B, T)
        if ids.ndim != 2 or ids.shape[1] != index.shape[1]:
            return out  # a token that is generated
        index = index.repeat_interleave(len(ids) // len(index), dim=0)  # beams
        prompts = torch.cat([self.expert(name).tokens for name in used])  # (P, width)
        values = F.embedding(index.clamp_min(0), prompts).to(out.dtype)  # (rows, T, width)
        return torch.where((index == NONE)[..., None], out, values)

    def _used(self, gates: Gates | None) -> list[str]:
        """Return the experts with a soft prompt that some sample uses, oldest first."""
        return [] if gates is None else [name for name in self.names if name in gates.live]

    def _size(self, name: str) -> int:
        return self.expert(name).shape.tokens


def _chosen(gates: Gates, used: Sequence[str]) -> list[list[str]]:
    """Return the experts with a soft prompt that each sample uses, the best one last."""
    columns = [gates.experts.index(name) for name in used]
    found = []
    for sample, weights in enumerate(gates.weights[:, columns].tolist()):  # (B, U)
        for name, weight in zip(used, weights, strict=True):
            if weight not in (0.0, 1.0):
                raise ValueError(f"soft prompt {name!r} has weight {weight}, expected 0 or 1")
        on = list(itertools.compress(used, weights))
        if gates.order is not None:
            best = {name: place for place, name in enumerate(gates.order[sample])}
            on.sort(key=best.__getitem__, reverse=True)
        found.append(on)
    return found


def holder_of(model: Any) -> PromptedEmbedding | None:
    """Return the input embedding of a model if it holds soft prompts."""
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return embedding if isinstance(embedding, PromptedEmbedding) else None
