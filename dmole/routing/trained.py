"""The reconstructor trained by gradient descent, and the choice of a reconstructor by kind."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import linear, mse_loss

from dmole.routing.autoencoder import Output, PCAReconstructor, Reconstructor, Weights

Kind = Literal["pca", "mlp_linear", "mlp_sigmoid"]
BiasInit = Literal["default", "mean"]


class MLPReconstructor:
    """Two linears with a ReLU between them, fitted by Adam with a cosine schedule.

    Args:
        hidden: Width of the bottleneck.
        output: ``sigmoid`` (the release) or ``linear``.
        learning_rate: Learning rate at the start.
        final_learning_rate: Learning rate at the end of the cosine.
        cosine_epochs: Length of the cosine in epochs.
        batch_size: Maximum number of samples per step.
        min_steps: Minimum number of steps per epoch, as far as there are samples. A task with
            fewer samples gets smaller batches, because patience counts epochs.
        patience: Epochs without a better training loss before the training stops.
        max_epochs: Maximum number of epochs.
        bias_init: ``mean`` starts the output at the mean of the data, which keeps the sigmoid
            variant from stopping on a plateau; ``default`` starts randomly.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        D-MoLE, 2025, https://arxiv.org/abs/2506.11672 (recipe of the release: the last
        weights are kept, not the best).
    """

    def __init__(
        self,
        *,
        hidden: int = 128,
        output: Output = "linear",
        learning_rate: float = 5e-3,
        final_learning_rate: float = 1e-3,
        cosine_epochs: int = 1000,
        batch_size: int = 1024,
        min_steps: int = 1,
        patience: int = 10,
        max_epochs: int = 1000,
        bias_init: BiasInit = "default",
    ) -> None:
        if output not in ("linear", "sigmoid"):
            raise ValueError(f"output must be 'linear' or 'sigmoid', got {output!r}")
        if bias_init not in ("default", "mean"):
            raise ValueError(f"bias_init must be 'default' or 'mean', got {bias_init!r}")
        for name, value in {
            "hidden": hidden,
            "cosine_epochs": cosine_epochs,
            "batch_size": batch_size,
            "min_steps": min_steps,
            "patience": patience,
            "max_epochs": max_epochs,
        }.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.hidden = hidden
        self.output = output
        self.learning_rate = learning_rate
        self.final_learning_rate = final_learning_rate
        self.cosine_epochs = cosine_epochs
        self.batch_size = batch_size
        self.min_steps = min_steps
        self.patience = patience
        self.max_epochs = max_epochs
        self.bias_init = bias_init

    def fit(self, rows: Tensor, generator: torch.Generator) -> Weights:
        """Return weights trained on rows ``(N, D)``, on their device, in float32.

        Raises:
            ValueError: If the training diverged.
        """
        with (
            torch.inference_mode(mode=False),
            torch.enable_grad(),
            torch.autocast(rows.device.type, enabled=False),
        ):
            rows = rows.detach().clone().float()  # (N, D)
            tensors = self._start(rows, generator)
            self._train(rows, tensors, generator)
        w_enc, b_enc, w_dec, b_dec = (tensor.detach().cpu() for tensor in tensors)
        if not all(torch.isfinite(tensor).all() for tensor in (w_enc, b_enc, w_dec, b_dec)):
            raise ValueError("autoencoder training diverged: a weight is not finite")
        return Weights(w_enc, b_enc, w_dec, b_dec, relu=True, sigmoid=self.output == "sigmoid")

    def _start(self, rows: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Draw uniformly within 1/sqrt(fan in), the default initialization of a linear."""
        width = rows.shape[1]
        shapes = [(self.hidden, width), (self.hidden,), (width, self.hidden), (width,)]
        tensors = []
        for shape, fan_in in zip(shapes, (width, width, self.hidden, self.hidden), strict=True):
            bound = 1 / math.sqrt(fan_in)
            tensor = torch.empty(shape).uniform_(-bound, bound, generator=generator)
            tensors.append(tensor.to(rows.device))
        if self.bias_init == "mean":
            mean = rows.mean(dim=0)  # (D,)
            tensors[3] = mean.logit(eps=1e-4) if self.output == "sigmoid" else mean
        return [tensor.requires_grad_() for tensor in tensors]

    def _train(self, rows: Tensor, tensors: list[Tensor], generator: torch.Generator) -> None:
        optimizer = torch.optim.Adam(tensors, lr=self.learning_rate)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=self.cosine_epochs, eta_min=self.final_learning_rate
        )
        size = min(self.batch_size, max(1, len(rows) // self.min_steps))
        best, stale = math.inf, 0
        for _ in range(self.max_epochs):
            total = torch.zeros((), device=rows.device)
            order = torch.randperm(len(rows), generator=generator).to(rows.device)  # (N,)
            for chunk in torch.split(order, size):
                batch = rows[chunk]  # (b, D), b <= size
                loss = mse_loss(self._forward(batch, tensors), batch)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += loss.detach() * len(chunk)
            scheduler.step()
            mean = total.item() / len(rows)
            if not math.isfinite(mean):
                raise ValueError(f"autoencoder training diverged: loss {mean}")
            best, stale = (mean, 0) if mean < best else (best, stale + 1)
            if stale >= self.patience:
                return

    def _forward(self, batch: Tensor, tensors: list[Tensor]) -> Tensor:
        w_enc, b_enc, w_dec, b_dec = tensors  # (H, D), (H,), (D, H), (D,)
        output = linear(linear(batch, w_enc, b_enc).relu(), w_dec, b_dec)  # (b, H) -> (b, D)
        return output.sigmoid() if self.output == "sigmoid" else output


def build_reconstructor(
    kind: Kind,
    components: int,
    *,
    min_steps: int = 1,
    patience: int = 10,
    max_epochs: int = 1000,
    bias_init: BiasInit = "default",
) -> Reconstructor:
    """Return the reconstructor of a kind; the keywords apply to trained ones only."""
    if kind == "pca":
        return PCAReconstructor(components)
    return MLPReconstructor(
        hidden=components,
        output="sigmoid" if kind == "mlp_sigmoid" else "linear",
        min_steps=min_steps,
        patience=patience,
        max_epochs=max_epochs,
        bias_init=bias_init,
    )
