"""The autoencoders of all tasks seen so far: fitting, thresholds, losses and state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dmole.routing.autoencoder import Reconstructor, ReconstructorStack, Weights
from dmole.routing.preprocessing import Preprocessor, quantile

LEAST_THRESHOLD = 1e-10
"""Where a reconstructor is exact, rounding alone must not reject a task's own samples."""


class AutoencoderBank:
    """One fitted reconstructor per task and the preprocessing they share.

    Args:
        reconstructor: Fits one task.
        standardize: Whether embeddings are standardized by the first task's statistics.
        heldout_fraction: Share of the embeddings kept from the fit, at least one sample.
    """

    def __init__(
        self, reconstructor: Reconstructor, standardize: bool, heldout_fraction: float
    ) -> None:
        self._reconstructor = reconstructor
        self._standardize = standardize
        self._heldout_fraction = heldout_fraction
        self._preprocessor = Preprocessor()
        self._weights: dict[str, Weights] = {}
        self._heldout: dict[str, Tensor] = {}
        self._stack: tuple[tuple[str, ...], ReconstructorStack] | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Fitted tasks, in order."""
        return tuple(self._weights)

    def heldout_losses(self, task: str) -> Tensor:
        """Return the task's losses on the slice it was not fitted to, ``(N,)``."""
        return self._heldout[task]

    def threshold(self, task: str, q: float) -> float:
        """Return the quantile ``q`` of the task's held-out losses, never quite 0."""
        return max(quantile(self._heldout[task], q), LEAST_THRESHOLD)

    def fit(self, task: str, embeddings: Tensor, generator: torch.Generator) -> None:
        """Fit a task; the very first one also freezes the statistics.

        Args:
            task: Name of the task; a known one is fitted anew.
            embeddings: Raw embeddings ``(N, D)``, finite, at least two.
            generator: Draws the held-out slice and what the reconstructor draws.

        Raises:
            ValueError: If there are fewer than two embeddings or one is not finite.
        """
        samples = len(embeddings)
        if embeddings.ndim != 2 or samples < 2:
            raise ValueError(
                f"task {task}: the router needs embeddings (N, D) with N >= 2, "
                f"got {tuple(embeddings.shape)}"
            )
        if not torch.isfinite(embeddings).all():
            raise ValueError(f"task {task}: an embedding is not finite")
        if self._standardize and set(self.tasks) <= {task}:
            self._preprocessor = Preprocessor.fit(embeddings)
        rows = self._preprocessor(embeddings)  # (N, D)
        heldout = min(max(1, int(self._heldout_fraction * samples + 0.5)), samples - 1)
        order = torch.randperm(samples, generator=generator).to(rows.device)  # (N,)
        weights = self._reconstructor.fit(rows[order[heldout:]], generator)  # (N - heldout, D)
        self._weights[task] = weights
        self._heldout[task] = weights.losses(rows[order[:heldout]])  # (heldout,)
        self._stack = None

    def losses(self, embeddings: Tensor, tasks: Sequence[str]) -> Tensor:
        """Return the loss of raw embeddings ``(N, D)`` under each named task, ``(N, E)``."""
        if self._stack is None or self._stack[0] != tuple(tasks):
            self._stack = (tuple(tasks), ReconstructorStack([self._weights[t] for t in tasks]))
        return self._stack[1].losses(self._preprocessor(embeddings.detach().cpu()))

    def tensors(self, task: str) -> dict[str, Tensor]:
        """Return a task's tensors; the first task's include the statistics taken from it."""
        tensors = {**self._weights[task].tensors(), "losses_heldout": self._heldout[task]}
        mean, std = self._preprocessor.mean, self._preprocessor.std
        if task == self.tasks[0] and mean is not None and std is not None:
            tensors |= {"mean": mean, "std": std}
        return tensors

    def load(self, tasks: Mapping[str, Mapping[str, Tensor]], *, relu: bool, sigmoid: bool) -> None:
        """Replace the content by the tensors of each task, in order.

        Raises:
            ValueError: If a task's tensors are not those of a reconstructor.
        """
        self._preprocessor, self._weights, self._heldout = Preprocessor(), {}, {}
        self._stack = None
        for task, saved in tasks.items():
            rest: dict[str, Any] = {name: tensor.cpu() for name, tensor in saved.items()}
            if "mean" in rest and "std" in rest:
                self._preprocessor = Preprocessor(rest.pop("mean"), rest.pop("std"))
            try:
                self._heldout[task] = rest.pop("losses_heldout")
                self._weights[task] = Weights(**rest, relu=relu, sigmoid=sigmoid)
                _check_shapes(self._weights[task], self._heldout[task], self._preprocessor)
            except (KeyError, TypeError, ValueError) as error:
                self._preprocessor, self._weights, self._heldout = Preprocessor(), {}, {}
                raise ValueError(f"router of task {task}: {error}") from error


def _check_shapes(weights: Weights, heldout: Tensor, preprocessor: Preprocessor) -> None:
    """Refuse tensors that are not those of one reconstructor of finite numbers."""
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.tensors().items()}
    if len(shapes["w_enc"]) != 2:
        raise ValueError(f"tensor w_enc has shape {shapes['w_enc']}")
    hidden, width = shapes["w_enc"]  # H, D
    wanted = {"b_enc": (hidden,), "w_dec": (width, hidden), "b_dec": (width,)}
    tensors = {**weights.tensors(), "losses_heldout": heldout}
    if preprocessor.mean is not None and preprocessor.std is not None:
        tensors |= {"mean": preprocessor.mean, "std": preprocessor.std}
        shapes |= {name: tuple(tensors[name].shape) for name in ("mean", "std")}
        wanted |= {"mean": (width,), "std": (width,)}
        if not (preprocessor.std > 0).all():
            raise ValueError("tensor std is not positive")
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise ValueError(f"tensor {name} has shape {shapes[name]}, expected {shape}")
    if heldout.ndim != 1 or not len(heldout):
        raise ValueError(f"tensor losses_heldout has shape {tuple(heldout.shape)}")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise ValueError(f"tensor {name} holds a number that is not finite")
