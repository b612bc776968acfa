"""Which of Lightning's strategies and precisions a sequence can be learned with."""

from __future__ import annotations

from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

from dmole.run.lightning_private import starts_processes_for_each_fit


def check_strategy(strategy: Strategy) -> None:
    """Refuse a strategy that would give wrong numbers or none.

    Processes must last over all stages, since each stage is a fit of its own. And each must hold
    whole parameters: the proxy scores are norms of whole gradients, the plan and the placement of
    experts look at the shapes of whole layers, and the digests that keep answers apart are those
    of whole experts. FSDP, model parallelism and DeepSpeed's ZeRO split parameters or gradients.

    Args:
        strategy: What Lightning made of ``trainer.strategy``.

    Raises:
        ValueError: If it is neither of one device nor DDP with lasting processes.
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
    precisions below 32 cast all modules, the experts among them, and 64 the inputs; the frozen
    base model alone is cast by its own ``dtype``. ``16-mixed`` scales the loss and leaves
    out a step whose gradients overflow; on the CPU Lightning takes ``bf16-mixed`` in its place and
    says so.

    Args:
        precision: What Lightning made of ``trainer.precision``.

    Raises:
        ValueError: If it is none of the three.
    """
    if type(precision) not in (Precision, MixedPrecision):
        raise ValueError(
            f"trainer.precision {precision.precision} casts the experts too: use 32-true, "
            "bf16-mixed or 16-mixed, and the base model's dtype for its weights"
        )
