"""Reconstructors of embeddings: closed form or trained, all evaluated in one batched product."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

Output = Literal["linear", "sigmoid"]

CHUNK = 1024
"""Rows evaluated at once. Bounds the memory of a large held-out slice."""


@dataclass(frozen=True)
class Weights:
    """A fitted reconstructor: ``decode(activate(encode(z)))``, float32 on the CPU.

    Args:
        w_enc: Shape ``(H, D)``.
        b_enc: Shape ``(H,)``.
        w_dec: Shape ``(D, H)``.
        b_dec: Shape ``(D,)``.
        relu: Whether the hidden activation is a ReLU, else none.
        sigmoid: Whether the output goes through a sigmoid, else it is linear.
    """

    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor
    relu: bool
    sigmoid: bool

    def losses(self, rows: Tensor) -> Tensor:
        """Return the mean squared error over dimensions, ``(N,)`` for ``(N, D)``."""
        return ReconstructorStack([self]).losses(rows)[:, 0]  # (N, 1) -> (N,)

    def tensors(self) -> dict[str, Tensor]:
        """Return the four tensors by name, as saved."""
        return {name: getattr(self, name) for name in ("w_enc", "b_enc", "w_dec", "b_dec")}


def parameter_count(weights: Weights) -> int:
    """Return the number of parameters of a reconstructor."""
    return sum(tensor.numel() for tensor in weights.tensors().values())


class Reconstructor(Protocol):
    """Learns to reproduce one task's embeddings."""

    def fit(self, rows: Tensor, generator: torch.Generator) -> Weights:
        """Return weights fitted to preprocessed embeddings ``(N, D)``."""


class PCAReconstructor:
    """The best linear autoencoder, in closed form.

    Args:
        components: Width of the bottleneck. At most half the dimensions (a full basis would
            reproduce every task's samples) and one less than the number of samples are used.

    Raises:
        ValueError: If ``components`` is not positive.
    """

    def __init__(self, components: int = 128) -> None:
        if components < 1:
            raise ValueError(f"components must be at least 1, got {components}")
        self.components = components

    def fit(self, rows: Tensor, generator: torch.Generator) -> Weights:
        """Return the projection on the leading principal components of ``(N, D)``."""
        rows = rows.detach().double()
        samples, width = rows.shape
        count = min(self.components, samples - 1, max(1, width // 2))
        mean = rows.mean(dim=0)  # (D,)
        basis = leading_directions(rows - mean, count)  # (H, D)
        peaks = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True))  # (H, 1)
        basis = basis * torch.where(peaks < 0, -1.0, 1.0)  # the sign of an eigenvector is arbitrary
        return Weights(
            w_enc=basis.float().cpu(),
            b_enc=(-basis @ mean).float().cpu(),
            w_dec=basis.T.float().contiguous().cpu(),
            b_dec=mean.float().cpu(),
            relu=False,
            sigmoid=False,
        )


def leading_directions(centered: Tensor, count: int) -> Tensor:
    """Return orthonormal rows ``(count, D)`` of largest variance, by the smaller Gram matrix.

    Args:
        centered: Rows with mean zero, ``(N, D)``, float64.
        count: Number of directions, at most N and D; those of largest variance come first.
    """
    samples, width = centered.shape
    if samples >= width:
        directions: Tensor = torch.linalg.eigh(centered.T @ centered).eigenvectors
        return directions[:, width - count :].flip(1).T  # (D, D) -> (count, D)
    vectors: Tensor = torch.linalg.eigh(centered @ centered.T).eigenvectors
    vectors = vectors[:, samples - count :].flip(1)  # (N, count), largest first
    # QR keeps directions without variance orthonormal; dividing by their norm does not
    basis: Tensor = torch.linalg.qr(centered.T @ vectors).Q  # (D, count)
    return basis.T


class ReconstructorStack:
    """Fitted reconstructors of one kind as one batched product.

    Args:
        weights: One per task, same ``D``; hidden widths are padded with zeros to the largest.
        device: Where the products are computed; it must have float64.

    Raises:
        ValueError: If there are no weights, or their kinds or widths differ.
    """

    def __init__(self, weights: Sequence[Weights], device: torch.device | str = "cpu") -> None:
        if not weights:
            raise ValueError("there is no reconstructor to stack")
        kinds = {(one.relu, one.sigmoid, one.w_enc.shape[1]) for one in weights}
        if len(kinds) > 1:
            raise ValueError(f"reconstructors differ in (relu, sigmoid, width): {sorted(kinds)}")
        self.relu, self.sigmoid, self.width = kinds.pop()
        hidden = max(one.w_enc.shape[0] for one in weights)
        gaps = [hidden - one.w_enc.shape[0] for one in weights]
        self.w_enc = torch.stack(
            [pad(w.w_enc.double(), (0, 0, 0, gap)).T for w, gap in zip(weights, gaps, strict=True)]
        )  # (E, D, H)
        self.b_enc = torch.stack(
            [pad(w.b_enc.double(), (0, gap)) for w, gap in zip(weights, gaps, strict=True)]
        )[:, None]  # (E, 1, H)
        self.w_dec = torch.stack(
            [pad(w.w_dec.double(), (0, gap)).T for w, gap in zip(weights, gaps, strict=True)]
        )  # (E, H, D)
        self.b_dec = torch.stack([w.b_dec.double() for w in weights])[:, None]  # (E, 1, D)
        self._device = torch.device(device)
        for name in ("w_enc", "b_enc", "w_dec", "b_dec"):
            setattr(self, name, getattr(self, name).to(self._device))

    @torch.no_grad()
    def losses(self, rows: Tensor) -> Tensor:
        """Return each reconstructor's mean squared error over dimensions.

        The losses are computed in float64, also under autocast, and rounded to float32. A loss
        therefore does not depend on the device, on its reduced-precision modes or, through the
        order of a sum, on the other rows.

        Args:
            rows: Preprocessed embeddings of shape ``(N, D)``.

        Returns:
            Shape ``(N, E)``, float32 on the CPU.

        Raises:
            ValueError: If the rows and the reconstructors differ in width.
        """
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise ValueError(f"expected embeddings (N, {self.width}), got {tuple(rows.shape)}")
        with torch.autocast(self._device.type, enabled=False):
            return torch.cat([self._losses(chunk) for chunk in self._chunks(rows)]).cpu()

    @torch.no_grad()
    def reconstruct(self, rows: Tensor) -> Tensor:
        """Return what each reconstructor makes of rows.

        Args:
            rows: Preprocessed embeddings of shape ``(N, D)``.

        Returns:
            Shape ``(E, N, D)``, float32 on the CPU.
        """
        with torch.autocast(self._device.type, enabled=False):
            outputs = [self._output(chunk).float() for chunk in self._chunks(rows)]
            return torch.cat(outputs, dim=1).cpu()

    def _chunks(self, rows: Tensor) -> Iterator[Tensor]:
        for chunk in torch.split(rows.detach(), CHUNK):
            yield chunk.to(device=self._device, dtype=torch.float64)

    def _losses(self, rows: Tensor) -> Tensor:
        return (self._output(rows) - rows).square().mean(dim=-1).T.float().contiguous()  # (N, E)

    def _output(self, rows: Tensor) -> Tensor:
        batch = rows.expand(self.w_enc.shape[0], *rows.shape)  # (E, N, D)
        hidden = torch.baddbmm(self.b_enc, batch, self.w_enc)  # (E, N, H)
        hidden = hidden.relu() if self.relu else hidden
        output = torch.baddbmm(self.b_dec, hidden, self.w_dec)  # (E, N, D)
        return output.sigmoid() if self.sigmoid else output
