"""All regularizers of a run, as one term of the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dmole.regularizers.base import Regularizer, Step
from dmole.steps.accumulation import Share, Unit


class Terms(nn.ModuleList):
    """The regularizers of a module, in the order of its config.

    Args:
        regularizers: The terms; may be empty.
    """

    def __init__(self, regularizers: Sequence[Regularizer] = ()) -> None:
        super().__init__(regularizers)

    def __iter__(self) -> Iterator[Regularizer]:
        """Iterate over the terms."""
        return (cast("Regularizer", term) for term in super().__iter__())

    @property
    def records(self) -> bool:
        """Whether one of them reads the records of mixing linears."""
        return any(term.records for term in self)

    def total(
        self,
        step: Step | None,
        share: Share,
        device: torch.device,
        log: Callable[[str, Tensor], None],
        watch: Callable[[str, Tensor], None],
    ) -> Tensor:
        """Return the sum of all terms, each times the weight of the micro-batch.

        Args:
            step: The training step; None on a rank whose batch has no answer tokens.
            share: Weight of the rank's micro-batch in its optimizer step.
            device: Device of the sum.
            log: Receives name and weighted value of each term.
            watch: Receives the same, to find values that are not finite.
        """
        total = torch.zeros((), device=device)
        for term in self:
            unit: Unit = "tokens" if term.per_token else term.mean_over
            value = total.new_zeros(())
            if step is not None and share.has(unit):
                value = term(step)
            value = share.weigh(value, unit)
            name = type(term).__name__
            watch(name, value)
            log(name, value)
            total = total + value
        return total

    def keep_in_step(self, step: Step) -> None:
        """Make the passes through the base model that :meth:`total` makes on other ranks.

        Args:
            step: The training step of a rank whose batch has no answer tokens.
        """
        for term in self:
            if term.passes == "alike":
                term(step)

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and state of all terms, without copies, by index and name."""
        return {
            f"{index}/{key}": tensor
            for index, term in enumerate(self)
            for key, tensor in term.tensors().items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the result of :meth:`tensors`.

        Raises:
            ValueError: If something is missing, unknown or of another shape.
        """
        for index, term in enumerate(self):
            prefix = f"{index}/"
            saved = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            term.load_tensors(saved)
