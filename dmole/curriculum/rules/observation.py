"""Shows gradient rules the inputs of the linears in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmole.curriculum.rules.base import GradientRule, Training

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from dmole.experts import Gates, RoutedLinear


class Observer:
    """Hooks on the linears in training, which show rules the inputs of a forward.

    Padding, samples that fill a batch and repeated samples are left out, and so are passes without
    experts, passes of regularizers and the recomputation of activations in the backward pass.

    Args:
        rules: The rules that read inputs.
    """

    def __init__(self, rules: Sequence[GradientRule]) -> None:
        self._rules = rules
        self._handles: list[RemovableHandle] = []
        self._open = False

    def attach(self, training: Training) -> None:
        """Hook the linears in training."""
        self.detach()
        context = training.library.context
        for path in training.paths() if self._rules else ():
            linear: Any = training.library.model.get_submodule(path)

            def show(linear: RoutedLinear, args: tuple[Tensor, ...], _: Tensor) -> None:
                if self._open and context.current is not None and context.current.recording:
                    self._show(linear, args[0], context.current)

            self._handles.append(linear.register_forward_hook(show))

    def open(self) -> None:
        """Show the inputs from now on: a forward begins."""
        self._open = True

    def close(self) -> None:
        """Show no inputs from now on: the backward pass begins."""
        self._open = False

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._open = [], False

    @torch.no_grad()
    def _show(self, linear: RoutedLinear, x: Tensor, gates: Gates) -> None:
        flat = x.reshape(-1, x.shape[-1])
        valid = gates.valid_positions(linear.modality, x)
        if valid is not None:
            flat = flat.index_select(0, valid)  # (M, in)
        last = gates.records[-1] if gates.records else None
        routed = last is not None and last.path == linear.path
        probabilities = last.probabilities.detach() if last is not None and routed else None
        with torch.autocast(x.device.type, enabled=False):
            for rule in self._rules:
                rule.observe(linear.path, flat.float(), probabilities)
