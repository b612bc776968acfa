"""The base class of the initializers, and what one sees of a linear."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Source = Literal["nothing", "gradients", "inputs"]
"""What is measured of a linear: nothing; the sum of the gradients of its weight over batches; or
the moments of its inputs over valid tokens, see :class:`~dmole.allocation.inputs.InputMoments`."""


@dataclass(frozen=True)
class NewLinear:
    """A linear that holds a new expert, as input of an initializer.

    Args:
        expert: Name of the expert.
        path: Full path of the linear.
        scaling: Factor of the expert's update, ``alpha / rank``.
        down: ``(rank, in)`` Kaiming values of ``lora_a``, those of an expert without initializer.
        out_features: Width of the output.
        weight: Returns the weight of the base linear, ``(out, in)`` float32.
        kept: ``(k, in)`` orthonormal directions that earlier stages have kept; may be empty.
    """

    expert: str
    path: str
    scaling: float
    down: Tensor
    out_features: int
    weight: Callable[[], Tensor]
    kept: Tensor

    @property
    def rank(self) -> int:
        """Rank of the expert."""
        return len(self.down)


@dataclass(frozen=True)
class Values:
    """Initial values of an expert in one linear.

    Args:
        down: ``lora_a``, ``(rank, in)``.
        up: ``lora_b``, ``(out, rank)``; None for zeros.
        found: Rows of ``down`` that come from what was measured; the others were filled up.
    """

    down: Tensor
    up: Tensor | None = None
    found: int = 0


class Initializer(ABC):
    """Sets the values that a new expert starts with, once it is placed on the model.

    What it measures comes from a share of the batches that arrive in the stage, under the experts
    that the router adds to the new one in training; the new one does not change the output yet.
    An expert that continues a past one, as a version of its task, keeps the values of that one.

    Several ranks measure the same batches together. Each linear belongs to one rank, which
    computes its values; all ranks receive them, so all hold the same bits.

    A stage that is resumed after the start of its training takes the expert from its checkpoint;
    before, the stage begins again, with the same values.

    Args:
        proxy_fraction: Share of the task's batches that are measured, rounded up, in ``(0, 1]``.
        proxy_passes: Passes over these batches. Each keeps what is measured of a group of
            consecutive linears, about ``1 / proxy_passes`` of the numbers. The result is the same.

    Raises:
        ValueError: If an argument is out of range.
    """

    source: Source = "nothing"
    """What :meth:`start` needs of a linear."""
    kept_source: Source = "nothing"
    """What :meth:`keep` needs of a linear after a stage; nothing if no directions are kept."""
    reads_weights: bool = False
    """Whether the weights of the base model are read."""
    fixes_down: bool = False
    """Whether ``lora_a`` stays as it is, so that only ``lora_b`` trains."""

    def __init__(self, *, proxy_fraction: float = 0.01, proxy_passes: int = 1) -> None:
        if not 0 < proxy_fraction <= 1:
            raise ValueError(f"proxy_fraction must be in (0, 1], got {proxy_fraction}")
        if proxy_passes < 1:
            raise ValueError(f"proxy_passes must be at least 1, got {proxy_passes}")
        self.proxy_fraction = proxy_fraction
        self.proxy_passes = proxy_passes

    def check_files(self) -> None:  # noqa: B027
        """Refuse files that cannot be used, before a new run begins.

        Raises:
            OSError: If a file cannot be read.
            ValueError: If its content is not as needed.
        """

    def check(self, expert: str, ranks: Mapping[str, int]) -> None:  # noqa: B027
        """Refuse an expert that the initializer cannot start, before anything is measured.

        Args:
            expert: Name of the expert.
            ranks: Its rank by full path of the linear.

        Raises:
            ValueError: If the expert cannot be started.
        """

    @abstractmethod
    def start(self, linear: NewLinear, measured: Tensor | None) -> Values:
        """Return the initial values of an expert in one linear.

        Args:
            linear: The linear.
            measured: ``(out, in)`` gradients or ``(in + 1, in + 1)`` moments, float32; None if
                nothing is measured or nothing arrived.
        """

    def keep(self, linear: NewLinear, measured: Tensor | None) -> Tensor:
        """Return the directions that later stages are to avoid, ``(k, in)`` orthonormal rows.

        Args:
            linear: The linear, after the training of the stage.
            measured: As in :meth:`start`.
        """
        return linear.kept
