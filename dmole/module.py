"""The Lightning module: one step of training and of answering. Knows no callback and no stage."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from dmole.allocation import Allocation, Allocator, Unit, build_units
from dmole.curriculum.optimization import (
    Schedule,
    learning_rate_factor,
    parameter_groups,
    scaled_learning_rates,
)
from dmole.data.labels import answer_tokens
from dmole.distributed import weigh_by_tokens
from dmole.experts import ExpertLibrary, Gates
from dmole.modality import MODALITIES, Modality
from dmole.models.backbone import Backbone
from dmole.models.embedder import Embedder, sample_keys
from dmole.regularizers.base import Regularizer, Step
from dmole.regularizers.terms import Terms
from dmole.routing import Phase, RouteQuery, Router, Routing
from dmole.routing.mixture_routers import expert_shapes
from dmole.routing.routers import route_by_name
from dmole.run.context import EvaluationPass, StageContext
from dmole.storage.seeds import expert_seed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dmole.data import Batch


def _adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-4, weight_decay=0.01)


@dataclass(frozen=True)
class Answers:
    """What one test batch gave.

    Args:
        keys: Samples, as ``task/split/id``.
        texts: Their answers.
        gate_sets: Experts used for each, best first; empty for the base model.
    """

    keys: list[str]
    texts: list[str]
    gate_sets: list[tuple[str, ...]]


class ContinualModule(LightningModule):
    """A frozen multimodal model, its experts and the router that picks them.

    Args:
        backbone: The base model.
        allocator: Decides where a new task gets experts.
        router: Decides which experts a sample uses.
        alpha: Numerator of the experts' scaling ``alpha / rank``.
        dropout: Dropout on the experts' input while training.
        optimizer: Optimizer of the expert that is being trained.
        schedule: Shape of the learning rate over a stage after the warm-up.
        warmup: Share of a stage's steps in which the learning rate rises linearly.
        activation_checkpointing: Trade time for memory in the backward pass.
        beams: Width of the beam search when answering; 1 is greedy.
        projector_experts: Whether the projector may hold experts; its linears count in the
            language model's budget.
        regularizers: Extra terms of the training loss.
        seed: Fixes the initial weights of the experts.

    Example:
        >>> from dmole import AutoencoderRouter, ContinualModule
        >>> from dmole import PretrainedBackbone, UniformAllocator
        >>> allocator = UniformAllocator(rank=2)
        >>> module = ContinualModule(PretrainedBackbone("tiny"), allocator, AutoencoderRouter())
        >>> plan = allocator.allocate("count", module.units(), None, first=True)
        >>> module.add_expert(plan)
        >>> module.experts, module.count_parameters(plan)
        (('count',), 43264)
    """

    def __init__(
        self,
        backbone: Backbone,
        allocator: Allocator,
        router: Router,
        alpha: float = 16.0,
        dropout: float = 0.05,
        optimizer: OptimizerCallable = _adamw,
        schedule: Schedule = "cosine",
        warmup: float = 0.03,
        activation_checkpointing: bool = False,
        beams: int = 1,
        projector_experts: bool = False,
        regularizers: list[Regularizer] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0.0 <= warmup < 1.0:
            raise ValueError(f"warmup must be in [0, 1), got {warmup}")
        self.backbone = backbone
        self.allocator = allocator
        self.router = router
        self.alpha = alpha
        self.schedule: Schedule = schedule
        self.warmup = warmup
        self.beams = beams
        self.seed = seed
        self.projector_experts = projector_experts
        self.stage = StageContext()
        self.evaluation = EvaluationPass()
        self.library = ExpertLibrary(
            backbone.model, self._modality_of, dropout, seed, mixing=router.mixing
        )
        self.regularizers = Terms(regularizers or ())
        router.set_vision_width(backbone.vision_width)
        self.embedder = Embedder(backbone)
        self.make_optimizer = optimizer
        if activation_checkpointing:
            backbone.checkpoint_activations(self.library.context.for_checkpointing)

    def _modality_of(self, path: str) -> Modality:
        return self.backbone.parts.modality_of(path)

    @property
    def experts(self) -> tuple[str, ...]:
        """Experts in use; while an earlier stage is evaluated again, later ones are hidden."""
        experts = self.evaluation.experts
        return self.library.names if experts is None else experts

    # -- experts ---------------------------------------------------------------------------

    def units(self) -> list[Unit]:
        """Return what may get an expert, in the order of the model."""
        blocks = [
            block
            for block in self.backbone.blocks
            if self.projector_experts or block.modality != "projector"
        ]
        return build_units(
            blocks, self.backbone.linear_shapes(), self.allocator.unit, self.allocator.targets
        )

    def count_parameters(self, allocation: Allocation) -> int:
        """Return the number of parameters of an allocation's expert."""
        sizes = self.backbone.linear_shapes()
        shapes = expert_shapes(allocation, self.router, self.alpha)
        return sum(shape.count(*sizes[path]) for path, shape in shapes.items())

    def add_expert(self, allocation: Allocation) -> None:
        """Place the experts of an allocation on the model, untrained."""
        shapes = expert_shapes(allocation, self.router, self.alpha)
        self.library.add_shapes(allocation.expert, shapes)

    @property
    def training_experts(self) -> tuple[str, ...]:
        """The experts in training: the stage's own and the one that all stages share, if any."""
        return self.stage.experts

    def begin_stage(self, stage: StageContext) -> None:
        """Make the experts of a stage, which are in the library, the only things that train."""
        versions, name = self.library.versions, str(stage.expert)
        versions[name] = versions.get(name, 0) + 1  # its draws differ each time
        self.focus(stage)

    def focus(self, stage: StageContext) -> None:
        """Let gradients reach the experts of a stage, whether or not it trains now."""
        self.stage = stage
        self.library.train_only(*stage.experts)

    def training_modalities(self) -> tuple[str, ...]:
        """Return the modalities in which the experts in training sit, in the order of the data."""
        present = {
            self.backbone.parts.modality_of(path)
            for name in self.training_experts
            for path, _ in self.library.experts(name)
        }
        return tuple(modality for modality in MODALITIES if modality in present)

    # -- routing ---------------------------------------------------------------------------

    def route(self, batch: Batch) -> Routing:
        """Choose the experts of each sample: current and partner in training, else the router's."""
        phase: Phase = "test" if batch.labels is None else "train"
        current = self.stage.expert if phase == "train" else None
        again = phase == "test" or self.stage.epochs > 1  # else no sample comes a second time
        query = RouteQuery(None, batch.task_names, phase, current, self.experts)
        if self.router.needs(query):
            query = replace(query, embeddings=self.embed(batch, remember=again))
        with torch.autocast(self.device.type, enabled=False):  # the same at any precision
            return self.router.route(query)

    def embed(self, batch: Batch, *, remember: bool = True) -> Tensor:
        """Return what the router sees of the samples, ``(B, D)`` fp32 on the CPU.

        Args:
            batch: The samples.
            remember: Whether to keep their embeddings for the next time.
        """
        with self.library.context.use(None):
            return self.embedder(batch, remember=remember)

    def make_gates(
        self, gates: Tensor, batch: Batch, beams: int = 1, *, recording: bool = False
    ) -> Gates | None:
        """Bind gate weights ``(B, E)`` to a batch; None where there is no expert yet."""
        if not self.experts:
            return None
        rows = self.backbone.vision_rows(batch.inputs, batch.image_counts, beams)
        mask = batch.inputs.get("attention_mask")
        return Gates(self.experts, gates, rows, mask, recording)

    # -- steps -----------------------------------------------------------------------------

    def base_loss(self, batch: Batch) -> Tensor:
        """Return the bare base model's loss on a batch, for scoring its units."""
        with self.library.context.use(None):
            return self.backbone.loss(batch.inputs, labels_of(batch))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of the current expert (and partners) on the batch.

        Several processes together train on the mean over the answer tokens of all of them, as one
        process would on their joint batch. Under ``accumulate_grad_batches`` micro-batches weigh
        alike, whatever their tokens: the later ones have not been read yet.
        Dropout draws differ between ranks.
        """
        tokens = answer_tokens(labels_of(batch))
        loss, step = torch.zeros((), device=tokens.device), None
        if tokens:  # a rank whose only sample is a repeat has none
            loss, step = self.compute_step(batch)
        loss, whole = weigh_by_tokens(loss, tokens)
        if not torch.isfinite(whole):
            culprit = "another rank has the samples"
            if not torch.isfinite(loss):
                culprit = f"samples: {', '.join(sample_keys(batch))}"
            raise ValueError(
                f"the loss is {whole.item()} at step {self.global_step} of expert "
                f"{self.stage.expert!r}; {culprit}"
            )
        self.log("train/loss", whole, prog_bar=True, batch_size=len(batch.sample_ids))
        extra = self.regularizers.total(step, tokens, functools.partial(self.log, batch_size=1))
        return loss + extra + self._anchor()

    def compute_step(self, batch: Batch) -> tuple[Tensor, Step]:
        """Return the loss of a batch under its experts in training, and what led to it."""
        labels = labels_of(batch)
        recording = self.regularizers.records
        gates = self.make_gates(self.route(batch).gates, batch, recording=recording)

        def forward() -> Tensor:
            quiet = self.make_gates(gates.weights, batch) if gates is not None else None
            with self.library.context.use(quiet):
                logits: Tensor = self.backbone.outputs(batch.inputs).logits
            return logits

        with self.library.context.use(gates):
            output = self.backbone.outputs(batch.inputs, labels)
        step = Step(
            library=self.library,
            experts=self.training_experts,
            stage_tasks=self.stage.tasks,
            batch=batch,
            labels=labels,
            gates=gates,
            logits=output.logits,
            forward=forward,
            embed=functools.partial(self.embed, batch, remember=self.stage.epochs > 1),
            number=self.global_step,
        )
        return output.loss, step

    def _anchor(self) -> Tensor:
        """Return a zero that every trainable parameter takes part in.

        A batch without images leaves vision experts out of the graph; distributed training
        would then wait for their gradients for ever.
        """
        parameters = [p for p in self.parameters() if p.requires_grad]
        return 0.0 * torch.stack([p.sum() for p in parameters]).sum()

    def test_step(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Answers]:
        """Answer a batch of prompts."""
        return {"answers": self.answer(batch)}

    def answer(self, batch: Batch) -> Answers:
        """Answer a batch with the experts planned for each sample, or those the router picks."""
        keys = sample_keys(batch)
        order = self.evaluation.order(keys)
        if order is None:
            order = self.route(batch).order
        gates = self.make_gates(route_by_name(order, self.experts).gates, batch, self.beams)
        with self.library.context.use(gates):
            length = self.evaluation.answer_length(batch.task_names)
            texts = self.backbone.generate(batch.inputs, length, self.beams)
        return Answers(keys, texts, order)

    # -- optimization ----------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Return the optimizer over named groups (vision, projector, language) and its schedule."""
        groups = parameter_groups(
            (self.backbone.parts.modality_of(path), parameter)
            for name in self.training_experts
            for path, parameter in self.library.parameters(name)
            if parameter.requires_grad
        )
        if extra := list(self.regularizers.parameters()):
            groups.append({"name": "regularizer", "params": extra})
        optimizer = self.make_optimizer(groups)
        # Lightning counts the epochs of all stages so far; the schedule is this stage's alone
        steps_per_epoch = self.trainer.estimated_stepping_batches / (self.trainer.max_epochs or 1)
        steps = self.stage.steps = round(steps_per_epoch * self.stage.epochs)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, steps, self.warmup, self.schedule)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, *args: Any) -> None:
        """Step with each module's learning rate scaled by the curriculum."""
        with scaled_learning_rates(optimizer, self.stage.update_scale):
            super().optimizer_step(epoch, batch_idx, optimizer, *args)

    def on_train_start(self) -> None:
        """Switch dropout on, and let its draws depend on seed, expert and rank alone."""
        self.train()  # a model loaded from a folder comes in evaluation mode
        name = str(self.stage.expert)
        version = self.library.versions[name]
        torch.manual_seed(expert_seed(self.seed, "dropout", name, version, self.global_rank))

    # -- state -----------------------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Return tensors of experts and regularizers, uncopied; never the frozen base model's."""
        experts = {
            f"{name}/{key}": tensor
            for name in self.library.names
            for key, tensor in self.library.tensors(name).items()
        }
        return experts | {
            f"{_REGULARIZER}{key}": tensor for key, tensor in self.regularizers.tensors().items()
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains alone: the other experts are frozen, and saved after their stages."""
        prefixes = (*(f"{name}/" for name in self.training_experts), _REGULARIZER)
        tensors = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in tensors.items() if k.startswith(prefixes)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the frozen experts from where they are."""
        checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Fill experts and regularizers; every tensor must be there and fit.

        Raises:
            ValueError: If one is missing, unknown or of another shape.
        """
        for name in self.library.names:
            self.library.load_state_dict(name, _below(f"{name}/", state_dict))
        self.regularizers.load_tensors(_below(_REGULARIZER, state_dict))
        return torch.nn.modules.module._IncompatibleKeys([], [])


_REGULARIZER = "@regularizer/"  # no expert's name begins so


def _below(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def labels_of(batch: Batch) -> Tensor:
    """Return a batch's labels; `ValueError` where it has none."""
    if batch.labels is None:
        raise ValueError("a batch without labels cannot be trained on")
    return batch.labels
