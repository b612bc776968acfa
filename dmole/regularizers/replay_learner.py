"""The network that weighs replayed samples, and its optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, softplus

from dmole.regularizers.importance import importance_weights
from dmole.steps.finite import NonFiniteError, describe

_EVEN = math.log(math.e - 1)  # softplus of it is 1: all weights start at 1


class ReplayLearner:
    """Network, strengths and optimizer. Not a module, because it trains separately.

    Args:
        hidden: Width of the network.
        width: Width ``D`` of the router embeddings.
        tasks: Tasks of the sequence.
        learning_rate: Learning rate of Adam.
        seed: Seed of the network's initial weights.
    """

    def __init__(
        self, hidden: int, width: int, tasks: int, learning_rate: float, seed: int
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        scale = 1 / math.sqrt(width)
        first = torch.empty(hidden, width).uniform_(-scale, scale, generator=generator)
        self._named = {
            "first": nn.Parameter(first),
            "second": nn.Parameter(torch.zeros(hidden)),  # all scores start equal
            "strength": nn.Parameter(torch.full((tasks,), _EVEN)),
        }
        self._optimizer = torch.optim.Adam(self._named.values(), lr=learning_rate)

    def zeros(self) -> list[Tensor]:
        """Return a gradient of zeros."""
        return [torch.zeros_like(parameter) for parameter in self._named.values()]

    def weights(self, rows: Tensor, tasks: Tensor) -> Tensor:
        """Return the weights of samples, ``(n,)``, from embeddings ``(n, D)`` and task indices."""
        scores = (rows @ self._named["first"].T).relu() @ self._named["second"]  # (n, D) -> (n,)
        return importance_weights(scores, softplus(self._named["strength"])[tasks])

    def gradient(self, loss: Tensor) -> list[Tensor]:
        """Return the gradient of a loss, in the order of the parameters."""
        return list(torch.autograd.grad(loss, list(self._named.values())))

    def step(self, gradients: list[Tensor]) -> None:
        """Update the parameters.

        Raises:
            NonFiniteError: If a gradient is not finite; names it.
        """
        reason = describe(dict(zip(self._named, gradients, strict=True)))
        if reason:
            raise NonFiniteError(f"ReplayImportance: the gradient of {reason}")
        for parameter, gradient in zip(self._named.values(), gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and state of the optimizer, without copies."""
        state = self._optimizer.state_dict()["state"]
        moments = {
            f"{index}/{name}": torch.as_tensor(value)
            for index, entry in state.items()
            for name, value in entry.items()
        }
        return {name: p.detach() for name, p in self._named.items()} | moments

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load saved tensors; tasks that were added since keep their initial strength."""
        if not tensors:
            return
        tasks, strengths = len(tensors["strength"]), len(self._named["strength"])
        place = list(self._named).index("strength")
        moments = (f"{place}/exp_avg", f"{place}/exp_avg_sq")
        tensors = {
            key: pad(value, (0, strengths - tasks)) if key in moments else value
            for key, value in tensors.items()
        }
        for name, parameter in self._named.items():
            parameter.data[: len(tensors[name])] = tensors[name]
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key not in self._named:
                index, _, name = key.partition("/")
                state.setdefault(int(index), {})[name] = tensor.clone()
        whole = self._optimizer.state_dict()
        self._optimizer.load_state_dict({**whole, "state": state})
