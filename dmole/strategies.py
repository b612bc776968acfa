"""Strategies of Lightning beyond its own: DDP over a base model in shards."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.tensor import DTensor

from dmole.distributed import is_distributed
from dmole.models.sharding import BaseShards
from dmole.run.lightning_private import ignore_in_ddp

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from torch import Tensor

log = logging.getLogger("dmole")


class ShardedBaseStrategy(DDPStrategy):
    """DDP over the experts, with the frozen base model split over the ranks (FSDP2).

    Each rank holds an equal part of every block of vision encoder and language model, of the input
    embeddings and of the language head; see :class:`~dmole.models.sharding.BaseShards`. Experts,
    projector and router are as with ``ddp``, and so are the results, up to rounding. A single
    process holds the whole base model. The short name is ``sharded_base``.

    Args:
        gather_for_evaluation: Gather the whole base model while answers are generated and samples
            embedded, beside its shards. Otherwise it is gathered block by block for each token.
        kwargs: Arguments of :class:`lightning.pytorch.strategies.DDPStrategy`.

    Example:
        >>> from dmole import ContinualTrainer
        >>> trainer = ContinualTrainer(strategy="sharded_base", accelerator="cpu", devices=2)
        >>> trainer.strategy.gather_for_evaluation
        True
    """

    def __init__(self, gather_for_evaluation: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gather_for_evaluation = gather_for_evaluation
        self._shards: BaseShards | None = None
        self._splits = True

    def leave_whole(self) -> None:
        """Hold the whole base model in each process, as an evaluation does.

        Raises:
            ValueError: If the base model is not to be gathered for evaluation.
        """
        if not self.gather_for_evaluation:
            raise ValueError(
                "evaluate holds the whole base model in each process: set gather_for_evaluation "
                "to true, or use trainer.strategy ddp"
            )
        self._splits = False

    def setup_environment(self) -> None:
        """Connect the processes, then split the base model, once."""
        super().setup_environment()
        backbone: Any = getattr(self.lightning_module, "backbone", None)
        if backbone is None or not self._splits or not is_distributed():
            return
        if backbone.shards is not None:  # split before an earlier stage
            self._shards = backbone.shards
            return
        self._shards = backbone.shards = BaseShards(
            backbone, self.root_device, evaluates_whole=self.gather_for_evaluation
        )
        log.info(
            "the base model is split over %d processes: %.3g GB of its weights on each",
            self.world_size,
            self._shards.resident_bytes() / 1e9,
        )

    def setup(self, trainer: Trainer) -> None:
        """Set up a fit like DDP, and a test without a copy of rank 0's weights to all ranks."""
        if self._shards is None or trainer.state.fn == TrainerFn.FITTING:
            super().setup(trainer)
            return
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        assert self.model is not None
        self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        self.setup_precision_plugin()
        if self.gather_for_evaluation:
            self._shards.gather()

    def configure_ddp(self) -> None:
        """Wrap the module; the shards are frozen and differ between ranks, so DDP ignores them.

        A single process has nothing to reduce, and its batches may leave parameters out.
        """
        if not is_distributed():
            return
        if self._shards is not None:
            assert self.model is not None
            named = self.model.named_parameters()
            ignore_in_ddp(self.model, [name for name, p in named if isinstance(p, DTensor)])
        super().configure_ddp()

    def post_backward(self, closure_loss: Tensor) -> None:
        """Free the language head, which a step keeps whole."""
        super().post_backward(closure_loss)
        if self._shards is not None:
            self._shards.release()

    def teardown(self) -> None:
        """Split the base model again after a test."""
        super().teardown()
        if self._shards is not None:
            self._shards.free()


StrategyRegistry.register(
    "sharded_base",
    ShardedBaseStrategy,
    description="DDP over the experts, with the frozen base model split over the processes",
)
