"""Input of a router: the samples of one batch and the available experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Phase = Literal["train", "test"]


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
