"""The router of BranchLoRA: one key per expert, in the direction of its samples' embeddings."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dmole.routing.preprocessing import normalize_rows
from dmole.routing.query import RouteQuery
from dmole.routing.routers import LearningRouter, Routing, route_by_name
from dmole.storage.versions import newest_versions


def fit_key(rows: Tensor) -> Tensor:
    r"""Return the unit vector with the largest mean cosine to all rows.

    .. math::
        \arg\min_{\|k\| = 1} \sum_n \left( 1 - \cos(x_n, k) \right)
        = \frac{m}{\|m\|}, \quad m = \sum_n \frac{x_n}{\|x_n\|}

    The sum is linear in a unit vector :math:`k`, so the minimum needs no gradient descent as
    long as the encoders are frozen.

    Args:
        rows: Embeddings of one task's samples, shape ``(N, D)``.

    Returns:
        Unit vector of shape ``(D,)``, float32; zero where all rows are zero.

    Raises:
        ValueError: If there are no rows, or they are not a matrix.

    Source:
        BranchLoRA, 2025, https://arxiv.org/abs/2506.02041, after secondary texts (its code is not
        public), where keys are trained for the loss above. The closed form is ours.

    Example:
        >>> fit_key(torch.tensor([[2.0, 0.0], [0.0, 5.0]]))
        tensor([0.7071, 0.7071])
    """
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"expected rows (N, D) with N >= 1, got {tuple(rows.shape)}")
    mean = normalize_rows(rows).double().mean(dim=0, keepdim=True)  # (1, D)
    return normalize_rows(mean)[0]


def key_scores(rows: Tensor, keys: Tensor) -> Tensor:
    """Return the cosine between each row and each key.

    Args:
        rows: Embeddings of shape ``(B, D)``.
        keys: Shape ``(K, D)``, of any length each.

    Returns:
        Shape ``(B, K)`` in ``[-1, 1]``, float32; zero where a row or key is zero.

    Raises:
        ValueError: If the shapes do not match.

    Source:
        BranchLoRA, 2025, https://arxiv.org/abs/2506.02041, after secondary texts.

    Example:
        >>> key_scores(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        tensor([[1., 0.]])
    """
    if rows.ndim != 2 or keys.ndim != 2 or rows.shape[1] != keys.shape[1]:
        raise ValueError(
            f"expected rows (B, D) and keys (K, D), got {tuple(rows.shape)} and {tuple(keys.shape)}"
        )
    with torch.autocast(rows.device.type, enabled=False):
        return (normalize_rows(rows) @ normalize_rows(keys).T).clamp(-1, 1)


class KeyRouter(LearningRouter):
    r"""Use the expert with the nearest keys: one key for images and one for text.

    .. math:: \hat t = \arg\max_t \cos(e_{img}, k_{img}^t) + \cos(e_{txt}, k_{txt}^t)

    Every sample gets an expert, including samples of tasks that are not learned yet.

    Source:
        BranchLoRA, 2025, https://arxiv.org/abs/2506.02041, after secondary texts. There keys are
        trained to raise their cosine; here the encoders are frozen, and the closed form of the
        best key is used. The choice of encoders and the sum of the two cosines are inferred: ours
        are those of the base model, as for the autoencoders.
    """

    needs_embeddings = True
    selects_experts = True

    def __init__(self) -> None:
        self._keys: dict[str, Tensor] = {}

    def needs(self, query: RouteQuery) -> bool:
        """Return whether keys are compared: only in the test phase, once an expert has keys."""
        return not query.training and any(name in self._keys for name in query.experts)

    def fit(
        self, expert: str, embeddings: Tensor, generator: torch.Generator | None = None
    ) -> None:
        """Compute the expert's keys; see :meth:`Router.fit`."""
        width = self._split()
        halves = (embeddings[:, :width], embeddings[:, width:])
        self._keys[expert] = torch.cat([fit_key(half) for half in halves])  # (Dv + Dl,)

    def route(self, query: RouteQuery) -> Routing:
        """Return the experts of each sample; see :meth:`Router.route`."""
        if query.training:
            name = query.experts[query.current_column()]
            return route_by_name([(name,)] * len(query.task_names), query.experts)
        fitted = [name for name in query.experts if name in self._keys]
        if not fitted:
            return route_by_name([()] * len(query.task_names), query.experts)
        embeddings, width = query.require_embeddings(), self._split()  # (B, D)
        keys = torch.stack([self._keys[name] for name in fitted])  # (F, D)
        scores = key_scores(embeddings[:, :width], keys[:, :width]) + key_scores(
            embeddings[:, width:], keys[:, width:]
        )  # (B, F)
        best = scores.argmax(dim=1).tolist()  # B columns of F
        newest = newest_versions(query.experts, self.updates)
        return route_by_name([(newest[fitted[column]],) for column in best], query.experts)

    def _split(self) -> int:
        if self.vision_width is None:
            raise RuntimeError("the key router does not know the width of the vision encoder")
        return self.vision_width

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the keys; see :meth:`LearningRouter.tensors`."""
        return {name: {"key": key} for name, key in self._keys.items()}

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore the result of :meth:`tensors`; see :meth:`LearningRouter.restore`."""
        for name, saved in tensors.items():
            if set(saved) != {"key"}:
                raise ValueError(f"router of {name}: expected a tensor 'key', got {sorted(saved)}")
        self._keys = {name: saved["key"] for name, saved in tensors.items()}
