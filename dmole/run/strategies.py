"""Checks of Lightning's strategy and precision: only some of them give correct results."""

from __future__ import annotations

from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

from dmole.run.lightning_private import starts_processes_for_each_fit


def check_strategy(strategy: Strategy) -> None:
    """Refuse a strategy that would fail or give wrong results.

    Processes must last over all stages, since each stage is a separate fit. Each process must hold
    whole parameters: the proxy scores are norms of whole gradients, the allocation and placement
    of experts use the shapes of whole linears, and the digests that identify answers are those of
    whole experts. FSDP, model parallelism and DeepSpeed's ZeRO split parameters or gradients.

    Args:
        strategy: Strategy that Lightning made from ``trainer.strategy``.

    Raises:
        ValueError: If the strategy is neither single-device nor DDP with lasting processes.
    """
    name = type(strategy).__name__
    if starts_processes_for_each_fit(strategy):
        raise ValueError("a sequence needs its processes to last: use trainer.strategy ddp")
    if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise ValueError(
            f"trainer.strategy {name} does not keep whole parameters on every rank, which scores, "
            "plan and experts need: use ddp or auto"
        )


def check_precision(precision: Precision) -> None:
    """Refuse a precision that would round experts and router.

    ``32-true``, ``bf16-mixed`` and ``16-mixed`` leave experts and router in float32. The ``-true``
    precisions below 32 cast all modules, including the experts, and ``64-true`` casts the inputs.
    The ``dtype`` of the frozen base model casts the base model alone. ``16-mixed`` scales the
    loss and skips a step whose gradients overflow; on the CPU Lightning uses ``bf16-mixed``
    instead and logs this.

    Args:
        precision: Precision plugin that Lightning made from ``trainer.precision``.

    Raises:
        ValueError: If the precision is none of the three.
    """
    if type(precision) not in (Precision, MixedPrecision):
        raise ValueError(
            f"trainer.precision {precision.precision} casts the experts too: use 32-true, "
            "bf16-mixed or 16-mixed, and the base model's dtype for its weights"
        )
