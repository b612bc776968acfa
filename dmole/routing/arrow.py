"""Token routing without training: the direction that an expert amplifies most is its prototype."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dmole.experts.lora import flat_linear
from dmole.experts.shape import ExpertShape
from dmole.routing.mixing import Mixing, refuse_several
from dmole.routing.query import RouteQuery
from dmole.routing.routers import Router, Routing, route_by_name
from dmole.storage.versions import newest_versions

if TYPE_CHECKING:
    from dmole.experts.expert import LoRAExpert
    from dmole.experts.gates import Gates
    from dmole.experts.lora import RoutedLinear


def arrow_prototype(down: Tensor, up: Tensor) -> Tensor:
    r"""Return the first right singular vector of an update :math:`B A`.

    It is the unit input that the update changes most, unique up to its sign. The update itself is
    not formed: with :math:`A^\top = Q R` the vector is :math:`Q v`, where :math:`v` is the first
    eigenvector of :math:`R B^\top B R^\top`.

    Args:
        down: The down-projection :math:`A`, ``(r, in)``.
        up: The up-projection :math:`B`, ``(out, r)``.

    Returns:
        Unit vector of shape ``(in,)``, float32 on the CPU.

    Source:
        Arrow, 2024, https://arxiv.org/abs/2405.11157. peft finds the vector by power iteration;
        here it is exact.

    Example:
        >>> arrow_prototype(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0], [1.0]])).abs()
        tensor([0., 1.])
    """
    lower, upper = (each.detach().cpu().double() for each in (down, up))
    basis, rest = torch.linalg.qr(lower.T)  # (in, k), (k, r)
    core = rest @ (upper.T @ upper) @ rest.T  # (k, k)
    first: Tensor = basis @ torch.linalg.eigh(core).eigenvectors[:, -1]  # (in,)
    return first.float()


class ArrowMixing(Mixing):
    r"""Weigh the experts of a linear for each token by their prototypes.

    .. math:: y = W x + s \sum_{t \in \text{top-}k} w_t B_t A_t x, \qquad
        w = \text{softmax}_{\text{top-}k}(|p_t^\top x| / \tau)

    with the prototype :math:`p_t` of :func:`arrow_prototype`. Nothing is trained or stored for it.
    The experts that a sample's gates leave out have no weight; an expert alone has a weight of 1.

    Args:
        top_k: Experts of a token; all if there are fewer.
        temperature: The divisor :math:`\tau`.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Arrow, 2024, https://arxiv.org/abs/2405.11157, as in peft, with its defaults. peft needs
        experts of equal shapes; here their ranks may differ.
    """

    def __init__(self, top_k: int = 3, temperature: float = 1.0) -> None:
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be a positive number, got {temperature}")
        self.top_k = top_k
        self.temperature = temperature
        self._known: WeakKeyDictionary[LoRAExpert, tuple[object, Tensor]] = WeakKeyDictionary()

    def shape(self, rank: int, alpha: float, experts: int, *, common: bool) -> ExpertShape:
        """Return plain LoRA; see :meth:`Mixing.shape`."""
        refuse_several(self, experts)
        return ExpertShape(rank, alpha)

    def __call__(
        self, linear: RoutedLinear, x: Tensor, experts: Mapping[str, LoRAExpert], gates: Gates
    ) -> dict[str, Tensor]:
        """Return the weight of each expert for each token, ``(rows, ..., 1)``."""
        if len(experts) < 2:
            return {}
        between = [1] * (x.ndim - 2)  # token axes of x, if any
        with torch.autocast(x.device.type, enabled=False):
            prototypes = torch.stack([self._prototype(each) for each in experts.values()])
            scores = flat_linear(x.float(), prototypes.to(x.device)).abs()  # (rows, ..., E)
            on = torch.stack([gates.row_weights(linear.modality, n, x) for n in experts], dim=-1)
            off = (on == 0).reshape(len(on), *between, on.shape[-1])  # (rows, 1, E)
            scores = scores.masked_fill(off, -math.inf) / self.temperature
            best = scores.topk(min(self.top_k, len(experts)), dim=-1)
            kept = torch.full_like(scores, -math.inf).scatter(-1, best.indices, best.values)
            weights = kept.softmax(dim=-1).nan_to_num(0.0)  # no expert is on: no number
        return {name: weights[..., column, None] for column, name in enumerate(experts)}

    def _prototype(self, expert: LoRAExpert) -> Tensor:
        """Return an expert's prototype, computed again only if its tensors have changed."""
        tensors = (expert.lora_a, expert.up)
        identity = [(tensor.data_ptr(), tensor._version) for tensor in tensors]
        known = self._known.get(expert)
        if known is None or known[0] != identity:
            found = arrow_prototype(*tensors).to(expert.lora_a.device)
            known = self._known[expert] = (identity, found)
        return known[1]


class ArrowRouter(Router):
    """Use the experts of all tasks, weighed for each token and linear by :class:`ArrowMixing`.

    In training, the stage's expert is alone. An expert with several versions is represented by the
    newest one.

    Args:
        top_k: Experts of a token; all if there are fewer.
        temperature: Divisor of the scores.

    Source:
        Arrow, 2024, https://arxiv.org/abs/2405.11157.

    Example:
        >>> from dmole.routing import ArrowRouter, RouteQuery
        >>> query = RouteQuery(None, ["?"], "test", None, ["paint", "count"])
        >>> ArrowRouter().route(query).order
        [('paint', 'count')]
    """

    selects_experts = True

    def __init__(self, top_k: int = 3, temperature: float = 1.0) -> None:
        self.top_k = top_k
        self.temperature = temperature
        self.mixing: Mixing = ArrowMixing(top_k, temperature)

    def route(self, query: RouteQuery) -> Routing:
        """Return the experts of each sample; see :meth:`Router.route`."""
        if query.training:
            names: tuple[str, ...] = (query.experts[query.current_column()],)
        else:
            newest = newest_versions(query.experts, self.updates)
            names = tuple(dict.fromkeys(newest.values()))
        return route_by_name([names] * len(query.task_names), query.experts)
