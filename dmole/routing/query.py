"""Input of a router: the samples of one batch and the available experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Phase = Literal["train", "test"]


@dataclass(frozen=True)
class Measures:
    """What a router has computed from the embeddings of ``B`` samples.

    Args:
        losses: Losses under the ``C`` experts of a :class:`Meter`, ``(B, C)``.
        ranks: Values whose smallest is the first of the accepting experts, ``(B, C)``; None where
            they follow from the losses.
    """

    losses: Tensor
    ranks: Tensor | None = None

    def rows(self, part: slice) -> Measures:
        """Return the measures of some samples."""
        return Measures(self.losses[part], None if self.ranks is None else self.ranks[part])


class Meter(Protocol):
    """Computes the measures of a router in parts: by sample and by expert."""

    @property
    def experts(self) -> Sequence[str]:
        """The ``C`` measured experts."""

    @property
    def has_ranks(self) -> bool:
        """Whether the measures have ranks, which need embeddings and all experts together."""

    def version(self, expert: str) -> object:
        """Return an object that is another one after the expert was fitted again."""

    def losses(self, embeddings: Tensor, experts: Sequence[str], device: torch.device) -> Tensor:
        """Return the losses of raw embeddings ``(N, D)`` under some of the experts.

        Args:
            embeddings: On the CPU.
            experts: Names of ``n`` experts, at least one.
            device: Where to compute; it has float64.

        Returns:
            Shape ``(N, n)``, on the CPU.
        """

    def ranks(self, embeddings: Tensor) -> Tensor | None:
        """Return the ranks of raw embeddings ``(N, D)``, ``(N, C)``; None if there are none."""


@dataclass(frozen=True)
class RouteQuery:
    """Everything that a router may read when it selects the experts of ``B`` samples.

    A custom router implements ``route(query)`` and returns a
    :class:`~dmole.routing.routers.Routing`, for example from
    :func:`~dmole.routing.routers.route_by_name`.

    Args:
        embeddings: Embeddings of the samples, ``(B, D)``, fp32 on the CPU. None where
            :meth:`~dmole.routing.routers.Router.needs` is False for this query.
        task_names: True task of each sample, ``B`` names. Only the oracle may read them.
        phase: ``train`` keeps the current expert on and first; ``test`` treats all experts equally.
        current: Name of the expert in training, None in the test phase.
        experts: Names of the experts in the library, oldest first: the columns of the gates.
        measures: What the router's :class:`Meter` returned for the samples, in place of embeddings.
        named: The expert that the base model names for each sample, for routers that ask it.

    Example:
        >>> from dmole.routing import RouteQuery
        >>> query = RouteQuery(None, ["ocr"], "train", "ocr", ["vqa", "ocr"])
        >>> query.current_column()
        1
    """

    embeddings: Tensor | None
    task_names: Sequence[str]
    phase: Phase
    current: str | None
    experts: Sequence[str]
    measures: Measures | None = None
    named: Sequence[str] | None = None

    @property
    def training(self) -> bool:
        """Whether the batch trains the current expert."""
        return self.phase == "train"

    def current_column(self) -> int:
        """Return the column of the expert in training.

        Raises:
            ValueError: If the current expert is not among the experts.
        """
        if self.current is None or self.current not in self.experts:
            raise ValueError(
                f"the current expert {self.current!r} is not among the experts {list(self.experts)}"
            )
        return list(self.experts).index(self.current)

    def require_embeddings(self) -> Tensor:
        """Return the embeddings ``(B, D)``.

        Raises:
            ValueError: If there is not one embedding for each sample.
        """
        if self.embeddings is None or len(self.embeddings) != len(self.task_names):
            got = None if self.embeddings is None else tuple(self.embeddings.shape)
            raise ValueError(f"expected {len(self.task_names)} embeddings, got {got}")
        return self.embeddings
