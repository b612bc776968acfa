"""The moments of what linears read, over the tokens of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Valid = Callable[[str, Tensor], Tensor | None]
"""Takes the path of a linear and its input, and returns the positions of valid tokens in the
flattened ``(rows, ...)``; None if all are valid."""


class InputMoments:
    r"""Sums the moments of the inputs of linears over forward passes, in float32.

    .. math:: \sum_n \begin{pmatrix} x_n \\ 1 \end{pmatrix} \begin{pmatrix} x_n \\ 1 \end{pmatrix}^\top

    with one :math:`x_n` for each valid token: their second moment, their sum and their number.

    Args:
        linears: The linears by path.
        valid: Tells which tokens are valid: neither padding nor of a repeated sample.

    Attributes:
        sums: ``(in + 1, in + 1)`` by path, on the device of the inputs; None before the first.
    """  # noqa: E501

    def __init__(self, linears: Mapping[str, nn.Module], valid: Valid) -> None:
        self._linears = dict(linears)
        self._valid = valid
        self.sums: dict[str, Tensor | None] = dict.fromkeys(linears)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Read the inputs of all forward passes in the body of a ``with`` statement."""
        with ExitStack() as stack:
            for path, linear in self._linears.items():
                stack.callback(self._hook(path, linear).remove)
            yield

    def _hook(self, path: str, linear: nn.Module) -> Any:
        def read(_: nn.Module, args: Any, kwargs: Any) -> None:
            x: Tensor = (*args, *kwargs.values())[0]  # (rows, ..., in)
            self._add(path, x.detach())

        return linear.register_forward_pre_hook(read, with_kwargs=True)

    def _add(self, path: str, x: Tensor) -> None:
        valid = self._valid(path, x)
        flat = x.reshape(-1, x.shape[-1])  # (N, in)
        flat = flat if valid is None else flat.index_select(0, valid)
        with torch.autocast(x.device.type, enabled=False):
            flat = torch.nn.functional.pad(flat.float(), (0, 1), value=1.0)  # (N, in + 1)
            moments = flat.t() @ flat
        kept = self.sums[path]
        self.sums[path] = moments if kept is None else kept.add_(moments)


def second_moment(moments: Tensor, *, center: bool) -> Tensor:
    """Return the second moment of inputs, ``(in, in)``; it is not divided by their number.

    Args:
        moments: ``(in + 1, in + 1)``, see :class:`InputMoments`.
        center: Whether the mean is subtracted from the inputs.

    Example:
        >>> x = torch.tensor([[1.0, 1.0], [3.0, 1.0]])  # (x, 1) for x = 1 and 3
        >>> second_moment(x.T @ x, center=True), second_moment(x.T @ x, center=False)
        (tensor([[2.]]), tensor([[10.]]))
    """
    second, total, count = moments[:-1, :-1], moments[-1, :-1], moments[-1, -1]
    if not center:
        return second
    return second - torch.outer(total, total) / count.clamp(min=1)
