"""Gates: from a router's logits for a token to expert weights. Pure functions, no model."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "DenseGate",
    "EntropyGate",
    "EntropyKind",
    "OneHotGate",
    "TokenGate",
    "TokenWeights",
    "TopKGate",
    "normalized_entropy",
]

EntropyKind = Literal["tsallis", "renyi"]


@dataclass(frozen=True)
class TokenWeights:
    """Decisions of a router for each token.

    Attributes:
        probabilities: Softmax of the logits of shape ``(..., N)``, float32.
        weights: Factor of each expert's output of shape ``(..., N)``, float32; zero where it is
            off.
    """

    probabilities: Tensor
    weights: Tensor


class TokenGate(ABC):
    """Turns the logits of ``N`` experts into their weights, token by token."""

    def __call__(self, logits: Tensor) -> TokenWeights:
        """Return probabilities and weights for logits of shape ``(..., N)``."""
        probabilities = logits.softmax(dim=-1, dtype=torch.float32)
        return TokenWeights(probabilities, self.weigh(probabilities))

    @abstractmethod
    def weigh(self, probabilities: Tensor) -> Tensor:
        """Return the weights for probabilities; both have shape ``(..., N)``."""


class DenseGate(TokenGate):
    r"""Every expert is on with its probability, :math:`w = p`.

    Source:
        CoIN, 2024, https://arxiv.org/abs/2403.08350 (authors' code of MoELoRA).
    """

    def weigh(self, probabilities: Tensor) -> Tensor:
        """Return the probabilities unchanged."""
        return probabilities


class TopKGate(TokenGate):
    r"""The :math:`k` most probable experts are on, :math:`w_i = p_i / \sum_{j \in K} p_j`.

    With one expert per token the renormalized weight is always 1, so the router learns from the
    balance loss alone. Ties go to the lower column.

    Args:
        top_k: Experts per token, at least 1 and at most ``N``.
        renormalize: Whether the weights of a token sum to 1; otherwise they are probabilities.

    Raises:
        ValueError: If ``top_k`` is below 1, or above the ``N`` of a call.

    Source:
        MoLA, 2024, https://arxiv.org/abs/2402.08562, and MoE-PEFT (authors' code of both); the
        tie rule is ours.
    """

    def __init__(self, top_k: int = 2, renormalize: bool = True) -> None:
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        self.top_k = top_k
        self.renormalize = renormalize

    def weigh(self, probabilities: Tensor) -> Tensor:
        """Return the weights of the kept experts, zero elsewhere."""
        _check_enough("top_k", self.top_k, probabilities)
        order = probabilities.argsort(dim=-1, descending=True, stable=True)  # (..., N) columns
        keep = torch.zeros_like(probabilities).scatter(-1, order[..., : self.top_k], 1.0)
        weights = probabilities * keep
        return weights / weights.sum(dim=-1, keepdim=True) if self.renormalize else weights


class OneHotGate(TokenGate):
    r"""The most probable expert is on with weight 1, :math:`w = e_{\arg\max p}`.

    The weights are constants: no gradient reaches the router. Ties go to the lower column.

    Source:
        SMoLoRA, 2025, https://arxiv.org/abs/2411.13949 (authors' code, not the paper's form).
    """

    def weigh(self, probabilities: Tensor) -> Tensor:
        """Return ones for the most probable experts, zero elsewhere."""
        best = probabilities.detach().argmax(dim=-1, keepdim=True)  # (..., 1)
        return torch.zeros_like(probabilities).scatter(-1, best, 1.0)


class EntropyGate(TokenGate):
    r"""The top-p set of experts, or all experts where the router is uncertain.

    .. math::
        \text{keep}_i = [c_i \le p^*] \lor [\text{rank}_i < k] \lor [H(p) > h^*], \quad
        w_i = p_i \, \text{keep}_i

    with :math:`c_i` the sum of the probabilities from the largest down to :math:`p_i`. The expert
    that crosses :math:`p^*` is dropped and kept weights are not renormalized.

    Args:
        top_p: Probability :math:`p^*` in ``(0, 1]`` that the kept experts may sum to.
        keep_top_k: Experts :math:`k` that are always on, at least 1 and at most ``N``.
        threshold: Entropy :math:`h^*` above which all experts are on; 1 or more disables this.
        index: Index :math:`q > 0` of the entropy; 1 is Shannon's.
        entropy: Kind of the entropy.
        eps: Added to every probability inside the entropy.

    Raises:
        ValueError: If an argument is out of range, or ``keep_top_k`` above the ``N`` of a call.

    Source:
        DynMoLE, 2025, https://arxiv.org/abs/2504.00661 (authors' code, whose call of the entropy
        function fails as published).
    """

    def __init__(
        self,
        top_p: float = 0.75,
        keep_top_k: int = 2,
        threshold: float = 0.9,
        index: float = 1.1,
        entropy: EntropyKind = "tsallis",
        eps: float = 1e-5,
    ) -> None:
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {top_p}")
        if keep_top_k < 1:
            raise ValueError(f"keep_top_k must be at least 1, got {keep_top_k}")
        if not threshold >= 0:
            raise ValueError(f"threshold must be at least 0, got {threshold}")
        _check_entropy(index, entropy, eps)
        self.top_p = top_p
        self.keep_top_k = keep_top_k
        self.threshold = threshold
        self.index = index
        self.entropy: EntropyKind = entropy
        self.eps = eps

    def weigh(self, probabilities: Tensor) -> Tensor:
        """Return the probabilities of the kept experts, zero elsewhere."""
        _check_enough("keep_top_k", self.keep_top_k, probabilities)
        ranked, order = probabilities.detach().sort(dim=-1, descending=True, stable=True)
        first = _running_sum(ranked) <= (self.top_p if self.top_p < 1 else math.inf)  # rounding
        first[..., : self.keep_top_k] = True
        keep = torch.zeros_like(first).scatter(-1, order, first)
        if self.threshold < 1:
            uncertain = self.measure(probabilities.detach()) > self.threshold  # (...)
            keep = keep | uncertain.unsqueeze(-1)
        return probabilities * keep

    def measure(self, probabilities: Tensor) -> Tensor:
        """Return the normalized entropy of shape ``(...)`` with this gate's settings."""
        return normalized_entropy(probabilities, self.index, self.entropy, self.eps)


def _running_sum(values: Tensor) -> Tensor:
    """Return the cumulative sum over the last axis.

    ``Tensor.cumsum`` has no deterministic form on CUDA; the sum of a few columns in float64 does,
    and equals that of a CPU.
    """
    sums = list(itertools.accumulate(values.double().unbind(dim=-1)))
    return torch.stack(sums, dim=-1).to(values.dtype)


def normalized_entropy(
    probabilities: Tensor,
    index: float = 1.1,
    kind: EntropyKind = "tsallis",
    eps: float = 1e-5,
) -> Tensor:
    r"""Return the entropy of each distribution divided by that of the uniform distribution.

    .. math::
        S_q(p) = \frac{1 - \sum_i p_i^q}{q - 1}, \qquad
        R_q(p) = \frac{\log \sum_i p_i^q}{1 - q}, \qquad
        S_1 = R_1 = -\sum_i p_i \log p_i

    Args:
        probabilities: Shape ``(..., N)``.
        index: Index :math:`q > 0`; at 1 both kinds are Shannon's entropy.
        kind: ``tsallis`` for :math:`S`, ``renyi`` for :math:`R`.
        eps: Added to every probability without renormalization, so the result may leave
            ``[0, 1]`` by a few ``eps``.

    Returns:
        Shape ``(...)``; zero for a single expert.

    Raises:
        ValueError: If ``index``, ``kind`` or ``eps`` is out of range.

    Source:
        DynMoLE, 2025, https://arxiv.org/abs/2504.00661 (authors' code); Shannon's case and the
        single expert are ours.

    Example:
        >>> normalized_entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), index=2, eps=0.0)
        tensor([1., 0.])
    """
    _check_entropy(index, kind, eps)
    count = probabilities.shape[-1]
    if count == 1:
        return torch.zeros_like(probabilities[..., 0])
    shifted = probabilities + eps  # (..., N)
    if index == 1:
        shannon: Tensor = torch.special.entr(shifted).sum(dim=-1)
        return shannon / math.log(count)
    power: Tensor = shifted.pow(index).sum(dim=-1)  # (...)
    if kind == "renyi":
        return power.log() / ((1 - index) * math.log(count))
    return (1 - power) / (1 - math.pow(count, 1 - index))


def _check_enough(name: str, least: int, probabilities: Tensor) -> None:
    if probabilities.shape[-1] < least:
        raise ValueError(f"{name} is {least} but there are {probabilities.shape[-1]} experts")


def _check_entropy(index: float, kind: str, eps: float) -> None:
    if not index > 0:
        raise ValueError(f"index must be positive, got {index}")
    if kind not in ("tsallis", "renyi"):
        raise ValueError(f"entropy must be tsallis or renyi, got {kind!r}")
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
