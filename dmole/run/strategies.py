"""Checks of Lightning's strategy and precision: only some of them give correct results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

from dmole.models.sharding import check_splittable
from dmole.run.lightning_private import starts_processes_for_each_fit
from dmole.strategies import ShardedBaseStrategy

if TYPE_CHECKING:
    from dmole.datamodule import ContinualDataModule
    from dmole.module import ContinualModule


def check_strategy(strategy: Strategy) -> None:
    """Refuse a strategy that would fail or give wrong results.

    Processes must last over all stages, since each stage is a separate fit. Each process must hold
    whole experts: their digests identify answers, and their checkpoints and files are whole.
    Lightning's FSDP, model parallelism and DeepSpeed's ZeRO split or replace them together with the
    base model. :class:`dmole.strategies.ShardedBaseStrategy` splits the base model alone.

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
            "plan and experts need: use ddp or auto, or sharded_base to split the base model alone"
        )


def prepare_sharding(
    strategy: Strategy, ranks: int, module: ContinualModule, data: ContinualDataModule
) -> None:
    """Keep the ranks in step if the strategy splits the base model over several.

    Args:
        strategy: Strategy of the run.
        ranks: Number of processes.
        module: The module.
        data: Its data, which pads batches.

    Raises:
        ValueError: If base model, cache or a regularizer does not go with a split base model.
    """
    if not isinstance(strategy, ShardedBaseStrategy) or ranks == 1:
        data.keep_in_step(training=False, evaluation=False)
        return
    data.keep_in_step(training=True, evaluation=not strategy.gather_for_evaluation)
    check_splittable(module.backbone)
    if module.vision.has_store:
        raise ValueError(
            "model.cache_vision leaves out passes on some ranks, which a base model split over "
            "them does not allow: set it to off, or use trainer.strategy ddp"
        )
    for term in module.regularizers:
        if term.passes == "own":
            raise ValueError(
                f"{type(term).__name__} makes passes of its own on each rank, which a base model "
                "split over them does not allow: use trainer.strategy ddp"
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
