"""Scales gradients by the covariance of the inputs of earlier tasks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dmole.curriculum.rules.base import GradientRule, Training
from dmole.curriculum.rules.moments import InputMoments, leading, spectrum


class InputPreconditioning(GradientRule):
    r"""Takes smaller steps along directions in which the inputs of earlier tasks vary.

    With the covariance :math:`C = \sum_i \lambda_i u_i u_i^\top` of the inputs of all earlier
    stages, cut off to its largest eigenvalues, experts and routers of a linear descend

    .. math:: G_A \leftarrow G_A\, \mu\, (C^p + \mu I)^{-1}, \qquad
        G_R \leftarrow G_R \Big(I - \sum_i (1 - c_i)\, u_i u_i^\top\Big)

    with :math:`c_i = \max(1 - \delta,\; s_k / s_i)`, where :math:`s_i` is the mean of
    :math:`\sqrt{\lambda}` over a window that ends at :math:`i`, and :math:`s_k` the smallest of
    them. The first stage is left as it is.

    The factor :math:`\mu` leaves directions without inputs as they are, whatever its value.

    Args:
        mu: The :math:`\mu`; None leaves the experts as they are.
        power: The :math:`p`: 1 for the covariance, 0.5 for its square root.
        damping: The :math:`\delta`, at most how much of a direction routers lose; 0 leaves them as
            they are.
        energy: Share of the sum of the eigenvalues that is kept.
        components: Eigenvalues that are told apart, at most; the memory of a linear is as many
            times its width.
        window: Eigenvalues of a mean.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        SAME, 2026, https://arxiv.org/abs/2602.01990, and its code in Prism. That code takes
        ``power`` 0.5, and its covariance is that of the last batches of the last task; that of the
        router is of the current batch. Here both are of all tokens of all earlier stages.
    """

    def __init__(
        self,
        mu: float | None = 0.9,
        power: float = 1.0,
        damping: float = 0.2,
        energy: float = 0.9,
        components: int = 64,
        window: int = 3,
    ) -> None:
        for name, value, allowed, is_valid in (
            ("mu", mu, "above 0", mu is None or mu > 0),
            ("power", power, "above 0", power > 0),
            ("damping", damping, "in [0, 1]", 0 <= damping <= 1),
            ("energy", energy, "in (0, 1]", 0 < energy <= 1),
            ("components", components, "at least 1", components >= 1),
            ("window", window, "at least 1", window >= 1),
        ):
            if not is_valid:
                raise ValueError(f"{name} must be {allowed}, got {value}")
        self.mu = mu
        self.power = power
        self.damping = damping
        self.energy = energy
        self.components = components
        self.window = window
        self._moments = InputMoments(components)
        self._bases: dict[str, Tensor] = {}  # (d, k)
        self._experts: dict[str, Tensor] = {}  # (k,) what a direction loses
        self._routers: dict[str, Tensor] = {}

    @property
    def observes(self) -> bool:
        """Whether experts or routers are scaled."""
        return self.mu is not None or self.damping > 0

    def before_stage(self, training: Training) -> None:
        """Decompose the covariance of the earlier stages."""
        self._bases, self._experts, self._routers = {}, {}, {}
        if not self.observes:
            return
        device = training.device
        self._moments.begin(training.widths(), device)
        for path in training.paths():
            past = self._moments.past.get(path)
            if past is None:
                continue
            values, vectors = spectrum(past, self._moments.matrices[path], centered=True)
            if not len(values):
                continue  # all inputs were zero
            kept = leading(values, self.energy)
            values = values[:kept].clamp_min(0)
            self._bases[path] = vectors[:, :kept].float().to(device).contiguous()
            self._experts[path] = self._lost_by_experts(values).float().to(device)
            self._routers[path] = self._lost_by_routers(values).float().to(device)

    def _lost_by_experts(self, values: Tensor) -> Tensor:
        """Return the share of each direction that experts lose, ``(k,)``."""
        if self.mu is None:
            return torch.zeros_like(values)
        scaled = values.pow(self.power)
        return scaled / (scaled + self.mu)

    def _lost_by_routers(self, values: Tensor) -> Tensor:
        """Return the share of each direction that routers lose, ``(k,)``."""
        roots = values.sqrt()
        windows = [roots[max(0, i + 1 - self.window) : i + 1].mean() for i in range(len(roots))]
        smooth = torch.stack(windows).clamp_min(1e-12)
        return (1 - smooth.min() / smooth).clamp(max=self.damping)

    def derived(self) -> list[Tensor]:
        """Return eigenvectors and factors."""
        tables = (self._bases, self._experts, self._routers)
        return [tensor for table in tables for tensor in table.values()]

    def observe(self, path: str, inputs: Tensor, probabilities: Tensor | None) -> None:
        """Add inputs to the moments of the step."""
        self._moments.observe(path, inputs)

    def pending(self) -> list[Tensor]:
        """Return the moments of the step."""
        return self._moments.pending()

    def apply(self, training: Training) -> None:
        """Scale the gradients along the eigenvectors."""
        for path, update in training.updates():
            basis = self._bases.get(path)
            if basis is None:
                continue
            for name, lost in (("lora_a", self._experts[path]), ("router", self._routers[path])):
                gradient = getattr(getattr(update, name, None), "grad", None)
                used = self.mu is not None if name == "lora_a" else self.damping > 0
                if gradient is not None and used:
                    gradient -= ((gradient @ basis) * lost) @ basis.t()

    def after_step(self, training: Training) -> None:
        """Add the moments of the step to those of the stage."""
        self._moments.commit()

    def clear(self) -> None:
        """Forget the moments of the step."""
        self._moments.clear()

    def after_stage(self, training: Training) -> None:
        """Add the moments of the stage to those of earlier ones."""
        self._moments.end()

    def tensors(self) -> dict[str, Tensor]:
        """Return the moments."""
        return self._moments.tensors()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the moments."""
        self._moments.load(tensors)
