"""The routers of DISCO and HiDe-LLaVA: the mean embedding of each task weighs its expert."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dmole.routing.preprocessing import normalize_rows
from dmole.routing.query import RouteQuery
from dmole.routing.routers import LearningRouter, Routing, route_by_name
from dmole.storage.versions import newest_versions


class PrototypeRouter(LearningRouter):
    r"""Use all experts, weighed by the similarity of a sample to the mean of each task.

    .. math:: g_t = \frac{\exp(s_t / \tau)}{\sum_u \exp(s_u / \tau)}

    An expert with several versions has the similarity of the most similar one, and the newest
    version answers. In training, the stage's expert has a weight of 1 and is alone.

    Args:
        temperature: The divisor :math:`\tau` of the similarities. The smaller it is, the more the
            best expert weighs.

    Raises:
        ValueError: If the temperature is not a positive number.
    """

    needs_embeddings = True
    selects_experts = True
    soft = True

    def __init__(self, temperature: float) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be a positive number, got {temperature}")
        self.temperature = temperature
        self._prototypes: dict[str, Tensor] = {}

    @abstractmethod
    def prototype(self, embeddings: Tensor) -> Tensor:
        """Return the prototype ``(P,)`` of the task whose training samples have ``(N, D)``."""

    @abstractmethod
    def similarities(self, embeddings: Tensor, prototypes: Tensor) -> Tensor:
        """Return the similarity of samples ``(B, D)`` to prototypes ``(K, P)``, ``(B, K)`` float64.

        In float64, the other samples of a batch do not change the rounded gates.
        """

    def needs(self, query: RouteQuery) -> bool:
        """Return whether prototypes are compared: in the test phase, once there are some."""
        return not query.training and any(name in self._prototypes for name in query.experts)

    def fit(
        self, expert: str, embeddings: Tensor, generator: torch.Generator | None = None
    ) -> None:
        """Compute the expert's prototype; see :meth:`Router.fit`.

        Raises:
            ValueError: If there are no embeddings.
        """
        if not len(embeddings):
            raise ValueError(f"expert {expert!r} has no embeddings to fit a prototype to")
        self._prototypes[expert] = self.prototype(embeddings)

    def route(self, query: RouteQuery) -> Routing:
        """Return the experts of each sample, the heaviest first; see :meth:`Router.route`."""
        samples = len(query.task_names)
        if query.training:
            name = query.experts[query.current_column()]
            return route_by_name([(name,)] * samples, query.experts)
        fitted = [name for name in query.experts if name in self._prototypes]
        if not fitted:
            return route_by_name([()] * samples, query.experts)
        prototypes = torch.stack([self._prototypes[name] for name in fitted])  # (F, P)
        scores = self.similarities(query.require_embeddings(), prototypes)  # (B, F)
        newest = newest_versions(query.experts, self.updates)
        names = list(dict.fromkeys(newest[name] for name in fitted))
        best = torch.full((samples, len(names)), -math.inf, dtype=scores.dtype)  # (B, K)
        columns = torch.tensor([names.index(newest[name]) for name in fitted])
        best = best.scatter_reduce(1, columns.expand(samples, -1), scores, "amax")
        gates = (best / self.temperature).softmax(dim=1).float()  # (B, K)
        if self.averages:  # a weight that rounds to 0 would take the expert out of the average
            gates = gates.clamp_min(torch.finfo(gates.dtype).tiny)
        return route_by_weight(gates, names, query.experts)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the prototypes; see :meth:`LearningRouter.tensors`."""
        return {name: {"prototype": values} for name, values in self._prototypes.items()}

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore the result of :meth:`tensors`; see :meth:`LearningRouter.restore`."""
        for name, saved in tensors.items():
            if set(saved) != {"prototype"} or saved["prototype"].ndim != 1:
                raise ValueError(
                    f"router of {name}: expected a vector 'prototype', got {sorted(saved)}"
                )
        if len({len(saved["prototype"]) for saved in tensors.values()}) > 1:
            raise ValueError("the prototypes of the router have different lengths")
        self._prototypes = {name: saved["prototype"] for name, saved in tensors.items()}


class TextPrototypeRouter(PrototypeRouter):
    r"""Weigh the experts by the cosine of a sample's text to the mean text of each task.

    .. math:: g_t = \text{softmax}_t(\cos(e_{txt}, m_{txt}^t) / \tau)

    The prototype is the mean of the text embeddings of the task's training samples. A sample
    without a text embedding has equal weights.

    Args:
        temperature: See :class:`PrototypeRouter`.

    Source:
        DISCO, 2025, https://arxiv.org/abs/2503.12897: soft gates with a temperature of 0.05 (code
        in Prism, a toolkit). The mean as prototype is inferred. There a separate text encoder
        embeds the instruction; here the text embedding is that of the base model, as for the
        other routers.

    Example:
        >>> import torch
        >>> from dmole.routing import RouteQuery, TextPrototypeRouter
        >>> router = TextPrototypeRouter(temperature=1.0)
        >>> router.set_vision_width(1)
        >>> router.fit("count", torch.tensor([[7.0, 2.0, 0.0]]))
        >>> router.fit("paint", torch.tensor([[7.0, 0.0, 3.0]]))
        >>> query = RouteQuery(torch.tensor([[1.0, 0.0, 5.0]]), ["?"], "test", None,
        ...                    ["count", "paint"])
        >>> router.route(query).order, router.route(query).gates
        ([('paint', 'count')], tensor([[0.2689, 0.7311]]))
    """

    def __init__(self, temperature: float = 0.05) -> None:
        super().__init__(temperature)

    def prototype(self, embeddings: Tensor) -> Tensor:
        """Return the mean text embedding, ``(Dl,)``."""
        return _mean(embeddings[:, _vision_width(self) :])

    def similarities(self, embeddings: Tensor, prototypes: Tensor) -> Tensor:
        """Return cosines of the texts, ``(B, K)`` float64; see the base class."""
        return _cosines(embeddings[:, _vision_width(self) :], prototypes)


class AnchorRouter(PrototypeRouter):
    r"""Average the experts below the last block, and weigh them there by two anchors of each task.

    .. math:: s_t = \tfrac12 (\cos(e_{img}, a_{img}^t) + \cos(e_{txt}, a_{txt}^t)), \qquad
        g_t = \text{softmax}_t(s_t / \tau)

    The anchors are the mean image embedding and the mean text embedding of the task's training
    samples. In the last block of the language model the experts have the weights :math:`g_t`; in
    all other linears each of the :math:`T` experts has the weight :math:`1/T`.

    Args:
        temperature: See :class:`PrototypeRouter`.

    Source:
        HiDe-LLaVA, 2025, https://arxiv.org/abs/2503.12941 (authors' code for anchors, scores and
        temperature). There CLIP embeds image and instruction; here the embeddings are those of
        the base model, as for the other routers.
    """

    averages = True

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__(temperature)

    def prototype(self, embeddings: Tensor) -> Tensor:
        """Return both anchors in one vector, ``(Dv + Dl,)``."""
        return _mean(embeddings)

    def similarities(self, embeddings: Tensor, prototypes: Tensor) -> Tensor:
        """Return the mean of both cosines, ``(B, K)`` float64; see the base class."""
        width = _vision_width(self)
        image = _cosines(embeddings[:, :width], prototypes[:, :width])
        return (image + _cosines(embeddings[:, width:], prototypes[:, width:])) / 2


def route_by_weight(gates: Tensor, names: Sequence[str], experts: Sequence[str]) -> Routing:
    """Return the routing under soft gates, the heaviest expert of each sample first.

    Args:
        gates: Weights of the samples, ``(B, K)``. Experts of weight 0 are left out.
        names: Names of the ``K`` experts, oldest first; ties go to the older one.
        experts: Experts of the query.
    """
    order, weights = [], []
    for row in gates.tolist():
        ranked = sorted(range(len(names)), key=lambda column: -row[column])
        used = [column for column in ranked if row[column] > 0]
        order.append(tuple(names[column] for column in used))
        weights.append(tuple(row[column] for column in used))
    return route_by_name(order, experts, weights=weights)


def _cosines(rows: Tensor, prototypes: Tensor) -> Tensor:
    """Return the cosine of each row ``(B, P)`` to each prototype ``(K, P)``; 0 for a zero row."""
    return normalize_rows(rows).double() @ normalize_rows(prototypes).double().T  # (B, K)


def _mean(rows: Tensor) -> Tensor:
    return rows.double().mean(dim=0).float()


def _vision_width(router: PrototypeRouter) -> int:
    if router.vision_width is None:
        name = type(router).__name__
        raise RuntimeError(f"the {name} does not know the width of the vision encoder")
    return router.vision_width
