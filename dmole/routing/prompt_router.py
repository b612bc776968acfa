"""The router of ModalPrompt: the soft prompts whose prototypes are nearest to image and text."""

from __future__ import annotations

import torch
from torch import Tensor

from dmole.routing.key_router import KeyRouter, key_scores
from dmole.routing.query import RouteQuery
from dmole.routing.routers import Routing, route_by_name
from dmole.storage.versions import newest_versions, versions_of


def guidance(rows: Tensor, prototypes: Tensor, width: int, image_weight: float) -> Tensor:
    r"""Return how well each prototype fits each sample.

    .. math:: \alpha_{it} = \lambda \cos(e_{img}^i, p_{img}^t)
        + (1 - \lambda) \cos(e_{txt}^i, p_{txt}^t)

    Args:
        rows: Embeddings of the samples, ``(B, D)``.
        prototypes: One of each expert, ``(K, D)``.
        width: Number of leading dimensions of the image; those of the text follow.
        image_weight: The share :math:`\lambda`, in ``[0, 1]``.

    Returns:
        Shape ``(B, K)`` in ``[-1, 1]``, float32.

    Source:
        ModalPrompt, 2025, https://arxiv.org/abs/2410.05849, authors' code.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
        >>> guidance(rows, torch.tensor([[1.0, 0.0, 1.0, 0.0]]), width=2, image_weight=0.25)
        tensor([[0.2500]])
    """
    image = key_scores(rows[:, :width], prototypes[:, :width])
    text = key_scores(rows[:, width:], prototypes[:, width:])
    return image_weight * image + (1.0 - image_weight) * text


class PromptRouter(KeyRouter):
    """Use the experts with the nearest prototypes, in training always the current one, too.

    Training uses the current expert and the ``top_k - 1`` past ones with the nearest prototypes,
    the test phase the ``top_k`` nearest of all. The prototype of an expert is the pair of unit
    vectors with the largest mean cosine to the image and text embeddings of its training samples.

    Args:
        top_k: Maximum number of experts of a sample; 1 trains each expert alone.
        image_weight: Share of the image in the similarity; the text has the rest.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        ModalPrompt, 2025, https://arxiv.org/abs/2410.05849: ``top_k`` 3 and ``image_weight`` 0.5 in
        the authors' code. There the prototype is a small network's output for the soft prompt,
        trained to the same cosines in the space of CLIP; here it is the vector in which those
        cosines are largest, in the spaces of the base model.
    """

    def __init__(self, top_k: int = 3, image_weight: float = 0.5) -> None:
        super().__init__()
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        if not 0 <= image_weight <= 1:
            raise ValueError(f"image_weight must be in [0, 1], got {image_weight}")
        self.top_k = top_k
        self.image_weight = image_weight

    def needs(self, query: RouteQuery) -> bool:
        """Return whether prototypes are compared: to choose experts, or to order them at test."""
        candidates = len(self._candidates(query))
        return candidates > self._free(query) > 0 if query.training else candidates > 1

    def route(self, query: RouteQuery) -> Routing:
        """Return the experts of each sample; see :meth:`Router.route`."""
        experts, samples = list(query.experts), len(query.task_names)
        lead = (experts[query.current_column()],) if query.training else ()
        candidates, free = self._candidates(query), self._free(query)
        if not self.needs(query):
            return route_by_name([lead + tuple(candidates)[:free]] * samples, experts)
        keys = torch.stack([self._keys[name] for name in candidates])  # (C, D)
        rows, width = query.require_embeddings(), self._split()
        scores = guidance(rows, keys, width, self.image_weight)  # (B, C)
        ranked = scores.argsort(dim=1, descending=True, stable=True)[:, :free].tolist()
        order = [lead + tuple(candidates[column] for column in row) for row in ranked]
        return route_by_name(order, experts)

    def _free(self, query: RouteQuery) -> int:
        """Return how many experts are chosen by similarity."""
        return self.top_k - 1 if query.training else self.top_k

    def _candidates(self, query: RouteQuery) -> list[str]:
        """Return the newest versions that have a prototype, without the expert in training."""
        newest = set(newest_versions(query.experts, self.updates).values())
        own = versions_of(str(query.current), self.updates) if query.training else ()
        fitted = [name for name in query.experts if name in self._keys]
        return [name for name in fitted if name in newest and name not in own]
