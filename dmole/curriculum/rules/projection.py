"""Projects gradients onto the complement of the inputs of earlier tasks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dmole.curriculum.rules.base import GradientRule, Training, input_parameters
from dmole.curriculum.rules.moments import (
    InputMoments,
    Moments,
    leading,
    sketch_matrix,
    spectrum,
)


class InputProjection(GradientRule):
    r"""Keeps what a linear computes of the inputs of earlier tasks: gradient projection memory.

    .. math:: G \leftarrow G - G\, U U^\top

    for ``lora_a`` and the router, whose rows read the input of the linear. After each task the
    orthonormal columns of :math:`U` grow by the fewest directions such that they hold a share of
    the task's squared inputs.

    The up-projections are free: an update stays the same on old inputs only where its ``lora_a``
    maps them to zero. An optimizer that scales entries one by one, such as Adam, moves parameters
    out of the complement.

    Args:
        energy: Share of the squared inputs of each task that the kept subspace holds; 0 disables
            the rule.
        components: Directions of a task's inputs that are told apart, at most; the memory of a
            linear is as many times its width.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Gradient projection memory, 2021, https://arxiv.org/abs/2103.09762. There the inputs of a
        sample of the task are decomposed; here moments are summed over all training tokens.
    """

    def __init__(self, energy: float = 0.95, components: int = 64) -> None:
        if not 0 <= energy <= 1 or components < 1:
            raise ValueError(
                f"energy must be in [0, 1] and components at least 1, got {energy}, {components}"
            )
        self.energy = energy
        self.components = components
        self._moments = InputMoments(components)
        self._kept: dict[str, Tensor] = {}

    @property
    def observes(self) -> bool:
        """Whether a subspace is kept."""
        return self.energy > 0

    def before_stage(self, training: Training) -> None:
        """Place the subspaces beside the parameters."""
        if not self.observes:
            return
        widths = training.widths()
        self._moments.begin(widths, training.device)
        for path in self._kept.keys() & widths.keys():
            self._kept[path] = self._kept[path].to(training.device)

    def observe(self, path: str, inputs: Tensor, probabilities: Tensor | None) -> None:
        """Add inputs to the moments of the step."""
        self._moments.observe(path, inputs)

    def pending(self) -> list[Tensor]:
        """Return the moments of the step."""
        return self._moments.pending()

    def apply(self, training: Training) -> None:
        """Remove the kept directions from the gradients."""
        for path, update in training.updates():
            if path not in self._kept:
                continue
            basis = self._kept[path]
            for parameter in input_parameters(update):
                if parameter.grad is not None:
                    parameter.grad -= (parameter.grad @ basis) @ basis.t()

    def after_step(self, training: Training) -> None:
        """Add the moments of the step to those of the stage."""
        self._moments.commit()

    def clear(self) -> None:
        """Forget the moments of the step."""
        self._moments.clear()

    def after_stage(self, training: Training) -> None:
        """Extend the kept subspace of each linear by that of the stage."""
        for path, moments in self._moments.end().items():
            old = self._kept.get(path)
            basis = None if old is None else old.cpu().double()
            # another process may have trained the stage, so the matrix is drawn again
            omega = sketch_matrix(len(moments.total), self.components, path)
            new = self._extended(basis, moments, omega)
            self._kept[path] = new.float().to(training.device)
        self._moments.past.clear()

    def _extended(self, basis: Tensor | None, moments: Moments, omega: Tensor) -> Tensor:
        """Return an orthonormal basis, ``(d, k)``, that also holds the energy of the stage."""
        values, vectors = spectrum(moments, omega, centered=False)
        if basis is None:
            return vectors[:, : leading(values, self.energy)]
        root = vectors * values.sqrt()  # (d, c), the second moment is root @ root.T
        rest = root - basis @ (basis.t() @ root)
        found, roots, _ = torch.linalg.svd(rest, full_matrices=False)
        total = float(values.sum())
        missing = self.energy * total - (total - float(roots.square().sum()))
        if missing <= 0 or total == 0:
            return basis
        count = leading(roots.square(), min(1.0, missing / float(roots.square().sum())))
        joined = torch.cat((basis, found[:, :count]), dim=1)
        extended: Tensor = torch.linalg.qr(joined).Q  # rounding must not pile up over the tasks
        return extended

    def tensors(self) -> dict[str, Tensor]:
        """Return the kept subspaces and the moments of the stage."""
        kept = {f"kept/{path}": basis for path, basis in self._kept.items()}
        return kept | {f"moments/{k}": v for k, v in self._moments.tensors().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the result of :meth:`tensors`."""
        moments: dict[str, Tensor] = {}
        devices = {path: omega.device for path, omega in self._moments.matrices.items()}
        self._kept = {}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            if kind == "moments":
                moments[name] = tensor
            elif kind == "kept" and tensor.ndim == 2 and tensor.is_floating_point():
                self._kept[name] = tensor.clone().to(devices.get(name, tensor.device))
            else:
                raise ValueError(f"the state {key!r:.80} is unknown")
        self._moments.load(moments)
