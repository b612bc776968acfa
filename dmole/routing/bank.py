"""The autoencoders of all experts: fitting, thresholds, losses and state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dmole.routing.autoencoder import Reconstructor, ReconstructorStack, Weights
from dmole.routing.pooled import PooledGaussian, TaskMoments
from dmole.routing.preprocessing import Preprocessor, quantile

_AT_ONCE = 128
"""Rows whose products stay in the caches of a CPU."""


class AutoencoderBank:
    """One fitted reconstructor per expert and the preprocessing that they share.

    Args:
        reconstructor: Fits the reconstructor of one expert.
        standardize: Whether embeddings are standardized by the statistics of the first task.
        heldout_fraction: Share of the embeddings left out of the fit, at least one sample.
        std_floor: See :meth:`Preprocessor.fit`.
        covariance_components: Principal components of each task's covariance that are kept for
            :meth:`distances`; 0 keeps no covariance.
    """

    def __init__(
        self,
        reconstructor: Reconstructor,
        standardize: bool,
        heldout_fraction: float,
        std_floor: float,
        covariance_components: int = 0,
    ) -> None:
        self._reconstructor = reconstructor
        self._standardize = standardize
        self._std_floor = std_floor
        self._heldout_fraction = heldout_fraction
        self._preprocessor = Preprocessor()
        self._weights: dict[str, Weights] = {}
        self._heldout: dict[str, Tensor] = {}
        self._thresholds: dict[tuple[str, float], float] = {}
        self._stack: tuple[tuple[str, ...], ReconstructorStack] | None = None
        self._covariance_components = covariance_components
        self._moments: dict[str, TaskMoments] = {}
        self._pooled: tuple[tuple[str, ...], PooledGaussian] | None = None

    @property
    def experts(self) -> tuple[str, ...]:
        """Experts with a reconstructor, in the order of their fits."""
        return tuple(self._weights)

    def heldout_losses(self, expert: str) -> Tensor:
        """Return the expert's losses on its held-out slice, ``(N,)``."""
        return self._heldout[expert]

    def threshold(self, expert: str, q: float) -> float:
        """Return the quantile ``q`` of the expert's held-out losses, at least `rounding_loss`."""
        if (expert, q) not in self._thresholds:
            found = max(quantile(self._heldout[expert], q), self.rounding_loss(expert))
            self._thresholds[expert, q] = found
        return self._thresholds[expert, q]

    def rounding_loss(self, expert: str) -> float:
        """Return the loss that rounding alone can cause; see `Preprocessor.rounding_loss`."""
        return self._preprocessor.rounding_loss(len(self._weights[expert].b_dec))

    def fit(self, expert: str, embeddings: Tensor, generator: torch.Generator) -> None:
        """Fit an expert; the first one also fixes the statistics.

        Args:
            expert: Name of the expert; an existing reconstructor is replaced.
            embeddings: Raw embeddings of its training samples, ``(N, D)``, finite, at least two.
            generator: Source of the held-out slice and of the reconstructor's random numbers.

        Raises:
            ValueError: If there are fewer than two embeddings or one is not finite.
        """
        samples = len(embeddings)
        if embeddings.ndim != 2 or samples < 2:
            raise ValueError(
                f"expert {expert}: the router needs embeddings (N, D) with N >= 2, "
                f"got {tuple(embeddings.shape)}"
            )
        if not torch.isfinite(embeddings).all():
            raise ValueError(f"expert {expert}: an embedding is not finite")
        if self._standardize and set(self.experts) <= {expert}:
            self._preprocessor = Preprocessor.fit(embeddings, self._std_floor)
        rows = self._preprocessor(embeddings)  # (N, D)
        heldout = min(max(1, int(self._heldout_fraction * samples + 0.5)), samples - 1)
        order = torch.randperm(samples, generator=generator).to(rows.device)  # (N,)
        weights = self._reconstructor.fit(rows[order[heldout:]], generator)  # (N - heldout, D)
        self._weights[expert] = weights
        self._heldout[expert] = weights.losses(rows[order[:heldout]])  # (heldout,)
        if self._covariance_components:
            self._moments[expert] = TaskMoments.fit(rows, self._covariance_components)
        self._stack = self._pooled = None
        self._thresholds.clear()

    def losses(self, embeddings: Tensor, experts: Sequence[str]) -> Tensor:
        """Return the loss of raw embeddings ``(N, D)`` under each named expert, ``(N, E)``."""
        if self._stack is None or self._stack[0] != tuple(experts):
            self._stack = (
                tuple(experts),
                ReconstructorStack([self._weights[name] for name in experts]),
            )
        return self._stack[1].losses(self._preprocessor(embeddings.detach().cpu()))

    def stack(self, expert: str, device: torch.device) -> ReconstructorStack:
        """Return the reconstructor of one expert on a device, which must have float64."""
        return ReconstructorStack([self._weights[expert]], device)

    def columns(self, embeddings: Tensor, stacks: Sequence[ReconstructorStack]) -> Tensor:
        """Return the losses of raw embeddings ``(N, D)`` under some experts, ``(N, n)``.

        Args:
            embeddings: On the CPU.
            stacks: Results of :meth:`stack`, one for each of the ``n`` experts.
        """
        found = []
        for part in torch.split(embeddings, _AT_ONCE):
            rows = self._preprocessor(part)
            found.append(torch.cat([stack.losses(rows) for stack in stacks], dim=1))
        return torch.cat(found)

    def version(self, expert: str) -> object:
        """Return an object that is another one after the expert was fitted or loaded again."""
        return self._weights[expert]

    def reconstruct(self, embeddings: Tensor, expert: str) -> tuple[Tensor, Tensor]:
        """Return raw embeddings ``(N, D)`` as an expert's reconstructor reads and returns them."""
        rows = self._preprocessor(embeddings.detach().cpu())  # (N, D)
        return rows, ReconstructorStack([self._weights[expert]]).reconstruct(rows)[0]

    def distances(self, embeddings: Tensor, experts: Sequence[str]) -> Tensor:
        """Return the distance of raw embeddings ``(N, D)`` to each named expert's task, ``(N, E)``.

        See :meth:`PooledGaussian.distances`. The covariance is pooled over the named experts.
        """
        if self._pooled is None or self._pooled[0] != tuple(experts):
            moments = [self._moments[name] for name in experts]
            least = self.rounding_loss(experts[0])
            self._pooled = (tuple(experts), PooledGaussian(moments, least))
        return self._pooled[1].distances(self._preprocessor(embeddings.detach().cpu()))

    def tensors(self, expert: str) -> dict[str, Tensor]:
        """Return an expert's tensors; those of the first expert include the statistics."""
        tensors = {**self._weights[expert].tensors(), "losses_heldout": self._heldout[expert]}
        if expert in self._moments:
            moments = self._moments[expert]
            tensors |= {f"task_{name}": getattr(moments, name) for name in _MOMENTS}
        mean, std = self._preprocessor.mean, self._preprocessor.std
        if expert == self.experts[0] and mean is not None and std is not None:
            tensors |= {"mean": mean, "std": std}
        return tensors

    def load(
        self, experts: Mapping[str, Mapping[str, Tensor]], *, relu: bool, sigmoid: bool
    ) -> None:
        """Replace all reconstructors by the tensors of each expert, in order.

        Raises:
            ValueError: If an expert's tensors are not those of a reconstructor.
        """
        self._clear()
        for expert, saved in experts.items():
            rest: dict[str, Any] = {name: tensor.cpu() for name, tensor in saved.items()}
            if "mean" in rest and "std" in rest:
                self._preprocessor = Preprocessor(rest.pop("mean"), rest.pop("std"))
            try:
                self._heldout[expert] = rest.pop("losses_heldout")
                moments = _pop_moments(rest, required=self._covariance_components > 0)
                self._weights[expert] = Weights(**rest, relu=relu, sigmoid=sigmoid)
                _check_shapes(self._weights[expert], self._heldout[expert], self._preprocessor)
                if moments is not None:
                    _check_moments(moments, self._weights[expert].w_enc.shape[1])
                    self._moments[expert] = moments
            except (KeyError, TypeError, ValueError) as error:
                self._clear()
                raise ValueError(f"router of expert {expert}: {error}") from error

    def _clear(self) -> None:
        """Forget all that was learned."""
        self._preprocessor, self._weights, self._heldout = Preprocessor(), {}, {}
        self._moments, self._stack, self._pooled = {}, None, None
        self._thresholds = {}


_MOMENTS = ("mean", "factor", "rest")


def _pop_moments(tensors: dict[str, Tensor], required: bool) -> TaskMoments | None:
    """Take the moments out of an expert's tensors; None if there are none and none are required."""
    found = {name: tensors.pop(f"task_{name}") for name in _MOMENTS if f"task_{name}" in tensors}
    if not found and not required:
        return None
    if not found:
        raise ValueError("no covariance: fitted with another ranking than likelihood")
    for name in _MOMENTS:
        if name not in found:
            raise ValueError(f"tensor task_{name} is missing")
    return TaskMoments(**found)


def _check_moments(moments: TaskMoments, width: int) -> None:
    """Raise unless the moments belong to embeddings of a width and are finite."""
    shapes = {name: tuple(getattr(moments, name).shape) for name in _MOMENTS}
    components = shapes["factor"][:1]
    expected = {"mean": (width,), "factor": (*components, width), "rest": (1,)}
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise ValueError(f"tensor task_{name} has shape {shapes[name]}, expected {shape}")
        tensor = getattr(moments, name)
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise ValueError(f"tensor task_{name} holds a number that is not finite")
    if moments.rest < 0:
        raise ValueError("tensor task_rest is negative")


def _check_shapes(weights: Weights, heldout: Tensor, preprocessor: Preprocessor) -> None:
    """Raise unless the tensors fit together and all numbers are finite."""
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.tensors().items()}
    if len(shapes["w_enc"]) != 2:
        raise ValueError(f"tensor w_enc has shape {shapes['w_enc']}")
    hidden, width = shapes["w_enc"]  # H, D
    expected = {"b_enc": (hidden,), "w_dec": (width, hidden), "b_dec": (width,)}
    tensors = {**weights.tensors(), "losses_heldout": heldout}
    if preprocessor.mean is not None and preprocessor.std is not None:
        tensors |= {"mean": preprocessor.mean, "std": preprocessor.std}
        shapes |= {name: tuple(tensors[name].shape) for name in ("mean", "std")}
        expected |= {"mean": (width,), "std": (width,)}
        if not (preprocessor.std > 0).all():
            raise ValueError("tensor std is not positive")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise ValueError(f"tensor {name} has shape {shapes[name]}, expected {shape}")
    if heldout.ndim != 1 or not len(heldout):
        raise ValueError(f"tensor losses_heldout has shape {tuple(heldout.shape)}")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise ValueError(f"tensor {name} holds a number that is not finite")
