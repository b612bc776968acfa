"""The Muon optimizer for matrices, in fp32 and batched over matrices of one shape.

`torch.optim.Muon(adjust_lr_fn="match_rms_adamw")` computes the same update in bfloat16. The shipped
weights of the tiny model were trained with this class. The optimizer of torch would not reproduce
them bit for bit, so switch to it when the weights are next retrained.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return the nearest semi-orthogonal matrices, approximately (Newton-Schulz).

    Args:
        matrices: Batch of shape ``(matrices, rows, columns)``.
        steps: Number of iterations.

    Returns:
        Tensor of the same shape whose singular values lie near 1.

    Source:
        Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.transpose(1, 2) if tall else matrices
    wide = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = wide @ wide.transpose(1, 2)
        wide = 3.4445 * wide + (-4.775 * gram + 2.0315 * (gram @ gram)) @ wide
    result: Tensor = wide.transpose(1, 2) if tall else wide
    return result


class Muon(torch.optim.Optimizer):
    """Momentum with an orthogonalized update; for hidden weight matrices only.

    Args:
        parameters: Matrices; matrices of one shape are orthogonalized in one batch.
        lr: Learning rate, on AdamW's scale.
        momentum: Decay of the gradient average (Nesterov).
        weight_decay: Decoupled weight decay.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.02,
    ) -> None:
        shapes: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            shapes[tuple(parameter.shape)].append(parameter)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([{"params": group} for group in shapes.values()], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            if not matrices:
                continue
            updates = []
            for matrix in matrices:
                average = self.state[matrix].setdefault("average", torch.zeros_like(matrix))
                average.lerp_(matrix.grad, 1 - group["momentum"])
                updates.append(matrix.grad.lerp(average, group["momentum"]))
            # an orthogonal update times this factor has the rms of an AdamW update
            size = 0.2 * max(matrices[0].shape) ** 0.5
            for matrix, update in zip(matrices, orthogonalize(torch.stack(updates)), strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * size)
