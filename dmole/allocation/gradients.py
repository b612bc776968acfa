"""Where the proxy pass reads gradients: at a parameter, or at a linear with quantized weights.

A quantized weight has no gradient in autograd. The gradient of the weight that it stands for is
formed from what the linear reads and from the gradient of what it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Scored = nn.Parameter | nn.Module
"""A parameter; or a linear whose weight is quantized, for its weight and its bias."""
Receive = Callable[[int, Tensor], None]
"""Takes the position of a tensor in its source and its float32 gradient, which is only read."""

ANCHOR = "gradient_anchor"
"""Parameter of a scored linear during the pass. Its graph begins there: no weight needs one."""


class GradientSource(Protocol):
    """Gives the gradients of some tensors in a backward pass, each once."""

    shapes: list[torch.Size]
    """Shapes of the tensors."""

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""

    def attach(self, receive: Receive | None) -> Callable[[], None]:
        """Hook the model and return what removes the hooks.

        Args:
            receive: Takes the gradients; None computes as always and drops them.
        """

    def begin_backward(self) -> None:
        """Prepare for a backward pass; all forward passes that it covers are done."""

    def end_backward(self) -> None:
        """Hand out the gradients that are not complete, as a use took no part in the loss."""


class ParameterSource:
    """The gradient that autograd accumulates for a parameter.

    Args:
        parameter: The parameter.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.shapes = [parameter.shape]

    @property
    def device(self) -> torch.device:
        """Device of the parameter."""
        return self.parameter.device

    def attach(self, receive: Receive | None) -> Callable[[], None]:
        """Read the gradient as soon as it is complete, and free it."""

        def read(parameter: Tensor) -> None:
            assert parameter.grad is not None  # the hook runs right after accumulation
            gradient = parameter.grad.detach()
            parameter.grad = None
            if receive is not None:
                receive(0, gradient.float())

        handle = self.parameter.register_post_accumulate_grad_hook(read)  # type: ignore[no-untyped-call]
        remove: Callable[[], None] = handle.remove
        return remove

    def begin_backward(self) -> None:
        """Do nothing."""

    def end_backward(self) -> None:
        """Do nothing."""


class LinearSource:
    r"""The gradients of weight and bias of a linear, from its input and its output's gradient.

    .. math:: \nabla_W = \sum_n g_n x_n^\top \qquad \nabla_b = \sum_n g_n

    over all rows :math:`n` of all uses in a forward pass, in float32.

    Args:
        linear: The linear, with ``in_features``, ``out_features`` and ``bias``.
    """

    def __init__(self, linear: nn.Module) -> None:
        base: Any = linear
        self.linear = base
        width: int = base.out_features
        self.shapes = [torch.Size((width, int(base.in_features)))]
        if base.bias is not None:
            self.shapes.append(torch.Size((width,)))
        self._receive: Receive | None = None
        self._in_backward = False
        self._uses = 0  # whose gradients are still to come
        self._sums: list[Tensor] = []

    @property
    def device(self) -> torch.device:
        """Device of the weight."""
        device: torch.device = self.linear.weight.device
        return device

    @property
    def reads(self) -> bool:
        """Whether the gradients are computed."""
        return self._receive is not None

    def attach(self, receive: Receive | None) -> Callable[[], None]:
        """Let the output require a gradient, and read it on arrival."""
        self._receive, self._in_backward, self._uses = receive, False, 0
        self._sums.clear()
        anchor = nn.Parameter(torch.zeros((), device=self.device))
        self.linear.register_parameter(ANCHOR, anchor)
        handle = self.linear.register_forward_hook(self._watch, with_kwargs=True)

        def remove() -> None:
            handle.remove()
            delattr(self.linear, ANCHOR)
            self._receive = None

        return remove

    def _watch(self, linear: Any, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        if not self._in_backward:  # else activations are recomputed, for a use already counted
            self._uses += 1
        x: Tensor = (*args, *kwargs.values())[0]
        watched: Tensor = _Watch.apply(output, x, getattr(linear, ANCHOR), self)  # type: ignore[no-untyped-call]
        return watched

    def begin_backward(self) -> None:
        """Count no more uses: what runs now is a recomputation."""
        self._in_backward = True

    def arrived(self, gradient: Tensor, x: Tensor) -> None:
        """Add the gradients of one use.

        Args:
            gradient: Gradient of the output, ``(..., out)``.
            x: Input, ``(..., in)``.
        """
        flat = gradient.reshape(-1, gradient.shape[-1]).float()  # (N, out)
        new = [flat.t() @ x.reshape(-1, x.shape[-1]).float(), flat.sum(0)][: len(self.shapes)]
        if self._sums:
            for total, part in zip(self._sums, new, strict=True):
                total.add_(part)
        else:
            self._sums = new
        self._uses -= 1
        if not self._uses:
            self._hand_out()

    def end_backward(self) -> None:
        """Hand out the sums over the uses whose gradients arrived."""
        self._hand_out()
        self._in_backward, self._uses = False, 0

    def _hand_out(self) -> None:
        sums, self._sums = self._sums, []
        for position, total in enumerate(sums):
            assert self._receive is not None
            self._receive(position, total)


class _Watch(torch.autograd.Function):
    """Returns the output of a linear and shows input and output gradient to a source."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, x: Tensor, anchor: Tensor, source: LinearSource
    ) -> Tensor:
        ctx.source = source
        if source.reads:
            ctx.save_for_backward(x)  # so that a checkpoint recomputes it
        return output.detach()  # not a view, which must not be changed in place

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.source.reads:
            (x,) = ctx.saved_tensors
            ctx.source.arrived(gradient, x)
        return gradient, None, None, None


def make_source(scored: Scored) -> GradientSource:
    """Return the source of the gradients of a parameter, or of a linear."""
    return ParameterSource(scored) if isinstance(scored, nn.Parameter) else LinearSource(scored)


@contextmanager
def attached(pairs: Iterable[tuple[GradientSource, Receive | None]]) -> Iterator[None]:
    """Hook sources to their receivers for the body of a ``with`` statement."""
    with ExitStack() as stack:
        for source, receive in pairs:
            stack.callback(source.attach(receive))
        yield


@contextmanager
def only_trainable(model: nn.Module, tensors: Sequence[nn.Parameter]) -> Iterator[None]:
    """Enable gradients for exactly these tensors; restore flags and gradients on exit."""
    everything = {id(tensor): tensor for tensor in (*model.parameters(), *tensors)}
    flags = {key: tensor.requires_grad for key, tensor in everything.items()}
    gradients = {id(tensor): tensor.grad for tensor in tensors}
    try:
        for tensor in everything.values():
            tensor.requires_grad_(id(tensor) in gradients)
        for tensor in tensors:
            tensor.grad = None
        yield
    finally:
        for key, tensor in everything.items():
            tensor.requires_grad_(flags[key])
            if key in gradients:
                tensor.grad = gradients[key]
