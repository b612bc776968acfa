"""Moments of the inputs of linears, in memory that is linear in their width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dmole.storage.seeds import derive_seed

_PARTS = ("sketch", "total", "count")
_LEAST = 1e-6
"""Smallest share of the largest eigenvalue that counts: sums in float32 have such errors."""


@dataclass
class Moments:
    r"""Sums over the inputs :math:`x` of a linear.

    Args:
        sketch: :math:`\sum_x x x^\top \Omega`, ``(d, c)`` float32.
        total: :math:`\sum_x x`, ``(d,)`` float32.
        count: Number of inputs, ``(1,)``: float32 for one step, int64 for all.
    """

    sketch: Tensor
    total: Tensor
    count: Tensor

    @classmethod
    def zeros(cls, omega: Tensor, dtype: torch.dtype = torch.float32) -> Moments:
        """Return sums over nothing; the count has a type of its own."""
        count = torch.zeros(1, dtype=dtype, device=omega.device)
        return cls(torch.zeros_like(omega), omega.new_zeros(len(omega)), count)

    def parts(self) -> dict[str, Tensor]:
        """Return the three sums by name."""
        return {name: getattr(self, name) for name in _PARTS}

    def observe(self, inputs: Tensor, omega: Tensor) -> None:
        """Add inputs ``(M, d)``, float32."""
        self.sketch.addmm_(inputs.t(), inputs @ omega)  # (d, M) (M, c)
        self.total += inputs.sum(dim=0)
        self.count += len(inputs)

    def add(self, other: Moments) -> None:
        """Add the sums of a step, unless one of them is not finite; the host does not wait."""
        finite = torch.stack([torch.isfinite(part).all() for part in other.parts().values()]).all()
        for name, part in self.parts().items():
            step = other.parts()[name]
            part += torch.where(finite, step, torch.zeros_like(step)).to(part.dtype)

    def clear(self) -> None:
        """Set all sums to zero."""
        for part in self.parts().values():
            part.zero_()


def sketch_matrix(width: int, components: int, path: str) -> Tensor:
    """Return the matrix of a sketch, ``(d, c)``: random, or the identity if c is d or more.

    It does not depend on the seed of the run, which may change between the stages: sketches of
    several stages are added.

    Args:
        width: Inputs of the linear.
        components: Columns of a sketch.
        path: Full path of the linear.
    """
    if components >= width:
        return torch.eye(width)
    generator = torch.Generator().manual_seed(derive_seed("sketch", path))
    return torch.randn(width, components, generator=generator)


def spectrum(moments: Moments, omega: Tensor, *, centered: bool) -> tuple[Tensor, Tensor]:
    r"""Return the largest eigenvalues of the inputs' second moment, and their eigenvectors.

    From the sketch :math:`Y = C\,\Omega` follows the Nystrom approximation

    .. math:: C \approx Y (\Omega^\top Y)^{-1} Y^\top,

    which is exact where :math:`\Omega` is the identity or the rank of :math:`C` is below the
    number of columns.

    Args:
        moments: Sums over at least one input.
        omega: The matrix :math:`\Omega` of the sketch, ``(d, c)``.
        centered: Whether :math:`C` is the covariance, not the second moment.

    Returns:
        Eigenvalues, ``(k,)``, descending, and eigenvectors, ``(d, k)``; float64 on the CPU.

    Source:
        J. A. Tropp et al., NeurIPS 2017, https://arxiv.org/abs/1706.05736, fixed-rank
        approximation from streaming data; small eigenvalues are left out instead of a shift.
    """
    omega, sketch = omega.cpu().double(), moments.sketch.cpu().double()
    count = float(moments.count)
    sketch = sketch / count  # (d, c)
    if centered:
        mean = moments.total.cpu().double() / count
        sketch = sketch - torch.outer(mean, mean @ omega)
    if omega.shape[0] == omega.shape[1]:
        values, vectors = torch.linalg.eigh((sketch + sketch.t()) / 2)
        return values.flip(0).clamp_min(0), vectors.flip(1)
    inner = omega.t() @ sketch  # (c, c)
    scales, rotation = torch.linalg.eigh((inner + inner.t()) / 2)
    kept = scales > _LEAST * scales[-1]
    root = sketch @ rotation[:, kept] / scales[kept].sqrt()  # (d, k)
    vectors, roots, _ = torch.linalg.svd(root, full_matrices=False)
    return roots.square(), vectors


def leading(values: Tensor, energy: float) -> int:
    """Return how many of the largest values hold a share of their sum, at least 1.

    Args:
        values: Values, descending, not negative.
        energy: The share, in (0, 1].

    Example:
        >>> leading(torch.tensor([6.0, 3.0, 1.0]), 0.9)
        2
    """
    shares = values.double().cumsum(0) / values.double().sum().clamp_min(1e-300)
    reached = int((shares < energy - 1e-12).sum()) + 1
    return min(reached, max(1, int((values > 0).sum())))


class InputMoments:
    """Moments of all linears in training: of this step, of this stage, and of earlier stages.

    Args:
        components: Columns of a sketch.
    """

    def __init__(self, components: int) -> None:
        self._components = components
        self.matrices: dict[str, Tensor] = {}
        self.step: dict[str, Moments] = {}
        self.stage: dict[str, Moments] = {}
        self.past: dict[str, Moments] = {}

    def begin(self, widths: Mapping[str, int], device: torch.device) -> None:
        """Begin a stage.

        Args:
            widths: Inputs of the linears in training, by path.
            device: Device of the linears in training.
        """
        self.matrices = {
            path: sketch_matrix(width, self._components, path).to(device)
            for path, width in widths.items()
        }
        self.step = {path: Moments.zeros(omega) for path, omega in self.matrices.items()}
        self.stage = {
            path: Moments.zeros(omega, torch.int64) for path, omega in self.matrices.items()
        }

    def observe(self, path: str, inputs: Tensor) -> None:
        """Add inputs ``(M, d)`` of a linear to those of the step."""
        self.step[path].observe(inputs, self.matrices[path])

    def pending(self) -> list[Tensor]:
        """Return the sums of the step."""
        return [part for moments in self.step.values() for part in moments.parts().values()]

    def commit(self) -> None:
        """Add the step to the stage."""
        for path, moments in self.step.items():
            self.stage[path].add(moments)

    def clear(self) -> None:
        """Forget the step."""
        for moments in self.step.values():
            moments.clear()

    def end(self) -> dict[str, Moments]:
        """Add the stage to the past, and return the moments of its linears with an input."""
        seen = {path: m for path, m in self.stage.items() if int(m.count) > 0}
        for path, moments in seen.items():
            if path in self.past:
                for name, part in self.past[path].parts().items():
                    part += moments.parts()[name].to(part.device)
            else:
                self.past[path] = Moments(**{k: v.clone() for k, v in moments.parts().items()})
        self.stage = {}
        return seen

    def tensors(self) -> dict[str, Tensor]:
        """Return the sums over this stage and over earlier ones, by kind, linear and name."""
        return {
            f"{kind}/{path}/{name}": part
            for kind, table in (("stage", self.stage), ("past", self.past))
            for path, moments in table.items()
            for name, part in moments.parts().items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the result of :meth:`tensors`.

        Raises:
            ValueError: If a name or a shape is not that of a moment.
        """
        tables: dict[str, dict[str, dict[str, Tensor]]] = {"stage": {}, "past": {}}
        for key, tensor in tensors.items():
            kind, _, rest = key.partition("/")
            path, _, name = rest.rpartition("/")
            if kind not in tables or name not in _PARTS:
                raise ValueError(f"the moment {key!r:.80} is unknown")
            tables[kind].setdefault(path, {})[name] = tensor
        for kind, table in tables.items():
            found = {path: self._checked(kind, path, parts) for path, parts in table.items()}
            setattr(self, kind, found)

    def _checked(self, kind: str, path: str, parts: Mapping[str, Tensor]) -> Moments:
        """Return copies of saved sums, on the device of the linear if it is in training."""
        shapes = [tuple(parts[name].shape) if name in parts else () for name in _PARTS]
        width = shapes[1][0] if len(shapes[1]) == 1 else -1
        expected = [(width, min(self._components, width)), (width,), (1,)]
        omega = self.matrices.get(path)
        fits = omega is None or len(omega) == width
        if width < 1 or shapes != expected or not fits or parts["count"].dtype != torch.int64:
            raise ValueError(f"the {kind} moments of {path!r:.80} have other shapes: {shapes}")
        copies = {name: part.clone() for name, part in parts.items()}
        if omega is not None:
            copies = {name: part.to(omega.device) for name, part in copies.items()}
        return Moments(**copies)
