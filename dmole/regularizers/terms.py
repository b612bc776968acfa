"""All regularizers of a run, as one term of the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dmole.distributed import weigh_by_tokens
from dmole.regularizers.base import Regularizer, Step


class Terms(nn.ModuleList):
    """The regularizers of a module, in the order of its config.

    Args:
        regularizers: The terms; may be none.
    """

    def __init__(self, regularizers: Sequence[Regularizer] = ()) -> None:
        super().__init__(regularizers)

    def __iter__(self) -> Iterator[Regularizer]:
        """Iterate over the terms."""
        return (cast("Regularizer", term) for term in super().__iter__())

    @property
    def records(self) -> bool:
        """Whether one of them reads what mixing linears record."""
        return any(term.records for term in self)

    def total(
        self, step: Step | None, tokens: Tensor, log: Callable[[str, Tensor], None]
    ) -> Tensor:
        """Return the sum of all terms.

        Args:
            step: The training step; None on a rank whose batch has nothing to learn from.
            tokens: Answer tokens of the rank's batch, scalar.
            log: Receives name and value of each term.

        Raises:
            ValueError: If a term is not finite; names it.
        """
        total = torch.zeros((), device=tokens.device)
        for term in self:
            value = total.new_zeros(()) if step is None else term(step)
            if term.per_token:
                value, _ = weigh_by_tokens(value, tokens)
            name = type(term).__name__
            if not torch.isfinite(value):
                raise ValueError(f"the term {name} of the loss is {value.item()}")
            log(f"train/{name}", value.detach())
            total = total + value
        return total

    def tensors(self) -> dict[str, Tensor]:
        """Return all that the terms learned or remember, uncopied, by place and name."""
        return {
            f"{place}/{key}": tensor
            for place, term in enumerate(self)
            for key, tensor in term.tensors().items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`tensors` returned.

        Raises:
            ValueError: If something is missing, unknown or of another shape.
        """
        for place, term in enumerate(self):
            prefix = f"{place}/"
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            term.load_tensors(own)
