"""RegLoRA: the key elements of earlier updates stay as earlier tasks left them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from dmole.experts import LoRAExpert
from dmole.regularizers.base import Regularizer, StageView, Step
from dmole.regularizers.element_counts import pack_counts, unpack_counts
from dmole.transfer import to_device


def key_elements(update: Tensor, fraction: float) -> Tensor:
    r"""Return which elements of an update of a weight are its key elements.

    These are the :math:`\lfloor f n \rfloor` elements of largest absolute value, of :math:`n`.
    Among equal ones the first in the order of rows count. An element of 0 is no key element.

    Args:
        update: The update :math:`BA`, shape ``(out, in)``.
        fraction: The :math:`f`, in (0, 1].

    Returns:
        Booleans of shape ``(out, in)``.

    Source:
        SEFE, 2025, https://arxiv.org/abs/2505.02486 (authors' code); the order of equal elements
        and the exclusion of 0 are ours.

    Example:
        >>> key_elements(torch.tensor([[1.0, -4.0], [2.0, 0.0]]), 0.5).tolist()
        [[False, True], [True, False]]
    """
    sizes = update.abs().flatten()
    count = int(fraction * sizes.numel())
    if not count:
        return torch.zeros_like(update, dtype=torch.bool)
    smallest = sizes.topk(count).values[-1]
    chosen = sizes > smallest
    equal = (sizes == smallest).nonzero().flatten()
    chosen[equal[: count - int(chosen.sum())]] = True
    return (chosen & (sizes > 0)).view_as(update)


def key_element_size(
    lora_a: Tensor, lora_b: Tensor, indices: Tensor, weights: Tensor | None = None
) -> Tensor:
    r"""Return the weighted mean size of some elements of an update.

    .. math:: \frac{\sum_k c_k \, |(BA)_k|}{\sum_k c_k}

    Args:
        lora_a: The :math:`A`, shape ``(r, in)``.
        lora_b: The :math:`B`, shape ``(out, r)``.
        indices: Positions :math:`k` in the flattened update, row by row, int32 or int64.
        weights: The :math:`c > 0` of each position; None for equal ones.

    Returns:
        Scalar, at least float32.

    Source:
        SEFE, 2025, https://arxiv.org/abs/2505.02486 (authors' code).

    Example:
        >>> a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [-1.0]])
        >>> key_element_size(a, b, torch.tensor([1, 3]))  # of 6 and -2
        tensor(4.)
    """
    with torch.autocast(lora_a.device.type, enabled=False):
        update = _widened(lora_b) @ _widened(lora_a)  # (out, in)
        sizes = update.flatten().index_select(0, indices).abs()
        return sizes.mean() if weights is None else (weights * sizes).sum() / weights.sum()


class KeyElements(Regularizer):
    r"""Keeps a new adapter from changing the key elements of earlier ones (RegLoRA of SEFE).

    .. math:: \lambda \, \mathrm{mean}_l \, \mathrm{mean}_{k \in K_l} \, |(B_l A_l)_k|

    After each stage the largest elements of the adapter's update of every linear :math:`l` join
    the set :math:`K_l`, whose elements later adapters should leave as they are. The sets are
    kept as packed bits: one bit for each element of a linear's weight, whatever the number of
    tasks. With ``counting: each`` there are ``ceil(log2(t + 1))`` bits after ``t`` tasks at most.

    Args:
        coefficient: The :math:`\lambda`; 0 disables the term.
        fraction: Share of the elements of a linear's update that are key elements of a task.
        counting: ``union`` counts an element once; ``each`` weighs it by the number of tasks
            that have it among their key elements, as the authors' code does.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        SEFE, 2025, https://arxiv.org/abs/2505.02486 (authors' code: the mean over linears, the
        update without its scaling).
    """

    mean_over = "steps"

    def __init__(
        self,
        coefficient: float = 2500.0,
        fraction: float = 0.02,
        counting: Literal["union", "each"] = "union",
    ) -> None:
        super().__init__()
        if coefficient < 0 or not 0 < fraction <= 1:
            raise ValueError(
                "coefficient must not be negative and fraction in (0, 1], got "
                f"{coefficient} and {fraction}"
            )
        if counting not in ("union", "each"):
            raise ValueError(f"counting must be 'union' or 'each', got {counting!r}")
        self.coefficient = coefficient
        self.fraction = fraction
        self.counting = counting
        self._packed: dict[str, Tensor] = {}  # by linear, uint8
        self._placed: dict[str, tuple[Tensor, Tensor | None]] | None = None  # indices, weights

    def before_stage(self, stage: StageView) -> None:
        """Check that the stage trains a plain adapter of its own.

        Raises:
            ValueError: If there are fewer adapters than stages, or an adapter mixes several.
        """
        self._placed = None
        if not self.coefficient:
            return
        if len(stage.library.names) < stage.index:
            raise ValueError(
                "KeyElements needs an adapter for each stage: leave shared_expert of the stream out"
            )
        for name in stage.experts:
            for path, expert in stage.library.experts(name):
                if not expert.shape.plain:
                    raise ValueError(
                        f"KeyElements needs plain adapters, expert {name!r} mixes several in "
                        f"linear {path}"
                    )

    def forward(self, step: Step) -> Tensor:
        """Return the weighted mean size of the key elements; see :class:`Regularizer`."""
        if not self.coefficient or not self._packed:
            return step.zero()
        linears = {
            (name, path): expert
            for name in step.experts
            for path, expert in step.library.experts(name)
            if expert.rank and path in self._packed
        }
        if self._placed is None:
            own = {path: expert for (_, path), expert in linears.items()}
            self._placed = {path: self._place(path, expert) for path, expert in own.items()}
        sizes = [
            key_element_size(expert.lora_a, expert.up, *self._placed[path])
            for (_, path), expert in linears.items()
            if len(self._placed[path][0])
        ]
        return self.coefficient * torch.stack(sizes).mean() if sizes else step.zero()

    def _place(self, path: str, expert: LoRAExpert) -> tuple[Tensor, Tensor | None]:
        """Return the positions of a linear's key elements and their weights, on the device."""
        counts, device = self._counts(path, expert), expert.lora_a.device
        indices = counts.nonzero().flatten()
        small = indices.to(torch.int32 if len(counts) < 2**31 else torch.int64)
        weights = None if self.counting == "union" else counts[indices].to(torch.float32)
        return to_device(small, device), None if weights is None else to_device(weights, device)

    def _counts(self, path: str, expert: LoRAExpert) -> Tensor:
        """Return the number of tasks that have each element among their key elements, ``(N,)``."""
        size = expert.up.shape[0] * expert.lora_a.shape[1]
        if path not in self._packed:
            return torch.zeros(size, dtype=torch.uint8)
        try:
            return unpack_counts(self._packed[path], size)
        except ValueError as error:
            raise ValueError(f"KeyElements: key elements of {path}: {error}") from error

    def after_stage(self, stage: StageView) -> None:
        """Add the key elements of the stage's adapter; computed on the CPU, alike on all ranks."""
        self._placed = None
        if not self.coefficient:
            return
        most = 1 if self.counting == "union" else 255
        for name in stage.experts:
            for path, expert in stage.library.experts(name):
                if not expert.rank:
                    continue
                up, down = (part.detach().cpu().float() for part in (expert.up, expert.lora_a))
                counts = self._counts(path, expert)
                counts += key_elements(up @ down, self.fraction).flatten() & (counts < most)
                self._packed[path] = pack_counts(counts)

    def extra_tensors(self) -> dict[str, Tensor]:
        """Return the key elements as packed bits, by linear."""
        return dict(self._packed)

    def load_extra_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the result of :meth:`extra_tensors`.

        Raises:
            ValueError: If a tensor does not hold packed bits.
        """
        for path, packed in tensors.items():
            if packed.dtype != torch.uint8 or packed.ndim != 2:
                raise ValueError(
                    f"KeyElements: key elements of {path} must be uint8 of two axes, got "
                    f"{packed.dtype} of shape {tuple(packed.shape)}"
                )
        self._packed = {path: packed.clone().cpu() for path, packed in tensors.items()}
        self._placed = None


def _widened(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
