"""The Lightning module: the training step and the test step, independent of callbacks."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from dmole.allocation import Allocation, Allocator, Unit, build_units
from dmole.curriculum.optimization import (
    Schedule,
    parameter_groups,
    scaled_learning_rates,
    scheduled,
)
from dmole.data.labels import IGNORED, answer_positions
from dmole.experts import ExpertLibrary, Gates
from dmole.modality import INPUT, MODALITIES, Modality
from dmole.models.backbone import Backbone
from dmole.models.embedder import Embedder, sample_keys
from dmole.models.generation import check_generation
from dmole.models.shared_vision import SharedVision
from dmole.models.vision_cache import vision_store
from dmole.regularizers.base import Regularizer, Step
from dmole.regularizers.terms import Terms
from dmole.routing import Phase, RouteQuery, Router, Routing, gate_set_name
from dmole.routing.mixture_routers import expert_shapes
from dmole.routing.routers import refuse_prompts, route_by_name
from dmole.run.context import EvaluationPass, StageContext
from dmole.steps.module import StepModule
from dmole.storage.seeds import expert_seed
from dmole.storage.versions import versions_of
from dmole.transfer import to_device

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dmole.data import Batch
    from dmole.experts.soft_prompts import Shape


def _adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-4, weight_decay=0.01)


@dataclass(frozen=True)
class Answers:
    """The answers to one test batch.

    Args:
        keys: Samples, as ``task/split/id``.
        texts: Answer to each sample.
        gate_sets: Experts used for each sample, best first; empty for the base model.
    """

    keys: list[str]
    texts: list[str]
    gate_sets: list[tuple[str, ...]]


class ContinualModule(StepModule):
    """A frozen multimodal model, its experts and the router that selects them.

    Args:
        backbone: The base model.
        allocator: Chooses the units that get an expert for a new task.
        router: Chooses the experts of each sample.
        alpha: Numerator of the experts' scaling ``alpha / rank``, with the allocator's ``rank``.
        dropout: Dropout probability on the input of experts in training.
        optimizer: Optimizer of the experts in training.
        schedule: Shape of the learning rate over a stage after the warm-up.
        warmup: Share of a stage's steps in which the learning rate rises linearly.
        activation_checkpointing: Whether to recompute activations in the backward pass, which
            takes more time and less memory.
        cache_vision: Whether outputs of the vision encoder are kept by image where no expert and
            no training changes them: ``off``, ``ram`` in each process, or ``disk`` in a folder
            that processes and runs share. Results are equal up to rounding.
        cache_vision_bytes: Number of bytes that are kept.
        cache_vision_folder: The folder for ``disk``; None takes ``vision`` in ``DMOLE_CACHE``.
        beams: Width of the beam search in generation; 1 is greedy.
        generation: Further settings of generation, such as ``repetition_penalty``; see
            `dmole.models.generation.SETTINGS`. Those of the base model's folder are not used.
        past_experts_on_device: Number of past experts that stay on the device between batches. The
            others are in host memory until a batch uses them, and results are the same. None keeps
            all on the device.
        projector_experts: Whether the projector may hold experts; its linears count toward the
            budget of the language model.
        regularizers: Extra terms of the training loss.
        skip_nonfinite_steps: Optimizer steps of a stage that are left out if a loss or a gradient
            is not finite. Each is logged and listed in ``metrics.json``; the next one ends the run.
        seed: Seed of initial weights, dropout and the choice of proxy batches.

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
        cache_vision: str | bool = "off",  # YAML reads off as false
        cache_vision_bytes: int = 2**32,
        cache_vision_folder: str | None = None,
        beams: int = 1,
        generation: dict[str, Any] | None = None,
        past_experts_on_device: int | None = None,
        projector_experts: bool = False,
        regularizers: list[Regularizer] | None = None,
        skip_nonfinite_steps: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(skip_nonfinite_steps)
        for name, value, allowed, is_valid in (
            ("alpha", alpha, "above 0 and finite", 0.0 < alpha < math.inf),
            ("dropout", dropout, "in [0, 1)", 0.0 <= dropout < 1.0),
            ("warmup", warmup, "in [0, 1)", 0.0 <= warmup < 1.0),
            ("beams", beams, "in [1, 64]", 1 <= beams <= 64),
        ):
            if not is_valid:
                raise ValueError(f"{name} must be {allowed}, got {value}")
        self.backbone = backbone
        self.allocator = allocator
        self.router = router
        self.alpha = alpha
        self.schedule: Schedule = schedule
        self.warmup = warmup
        self.beams = beams
        self.generation = check_generation(generation or {}, beams)
        backbone.set_generation(self.generation)
        self.seed = seed
        self.projector_experts = projector_experts
        self.stage = StageContext()
        self.evaluation = EvaluationPass()
        starts = allocator.initializer
        self.library = ExpertLibrary(
            backbone.model,
            self._modality_of,
            dropout,
            seed,
            router.mixing,
            past_experts_on_device,
            fixed_down=starts is not None and starts.fixes_down,
        )
        self.regularizers = Terms(regularizers or ())
        router.set_vision_width(backbone.vision_width)
        router.set_text_width(backbone.text_width)
        self.embedder = Embedder(backbone)
        store = vision_store(cache_vision, cache_vision_bytes, cache_vision_folder)
        self.vision = SharedVision(backbone, self.library, store)
        self.make_optimizer = optimizer
        if activation_checkpointing:
            backbone.checkpoint_activations(self.library.context.for_checkpointing)

    def _modality_of(self, path: str) -> Modality:
        return self.backbone.parts.modality_of(path)

    @property
    def experts(self) -> tuple[str, ...]:
        """Experts in use. When an earlier stage is evaluated again, later experts are left out."""
        experts = self.evaluation.experts
        return self.library.names if experts is None else experts

    # -- experts ---------------------------------------------------------------------------

    def units(self) -> list[Unit]:
        """Return the units that may get an expert, in the order of the model.

        Raises:
            ValueError: If the allocator gives soft prompts, which the model family cannot have, or
                among which the router cannot choose.
        """
        if self.allocator.unit == "input":
            refuse_prompts(self.router, "the tasks")
            path, width = self.backbone.input_unit()
            return [Unit(INPUT, "language", (path,), width)]
        blocks = [
            block
            for block in self.backbone.blocks
            if self.projector_experts or block.modality != "projector"
        ]
        return build_units(
            blocks, self.backbone.linear_shapes(), self.allocator.unit, self.allocator.targets
        )

    def _shapes(self, allocation: Allocation) -> dict[str, Shape]:
        return expert_shapes(allocation, self.router, self.allocator.expert_alpha(self.alpha))

    def count_parameters(self, allocation: Allocation) -> int:
        """Return the number of parameters of an allocation's expert."""
        sizes = self.backbone.linear_shapes()
        if self.allocator.unit == "input":
            path, width = self.backbone.input_unit()
            sizes[path] = (width, width)
        shapes = self._shapes(allocation)
        return sum(shape.count(*sizes[path]) for path, shape in shapes.items())

    def add_expert(self, allocation: Allocation) -> None:
        """Place the experts of an allocation on the model, with the values of its parent if any."""
        shapes = self._shapes(allocation)
        self.library.add_shapes(allocation.expert, shapes)
        if allocation.parent is not None:
            values = self.library.tensors(allocation.parent)
            self.library.load_state_dict(allocation.expert, values)

    @property
    def training_experts(self) -> tuple[str, ...]:
        """The experts in training: that of the stage, then the one all stages share, if any."""
        return self.stage.experts

    def begin_stage(self, stage: StageContext) -> None:
        """Train only the experts of a stage from now on; the library must hold them."""
        versions, name = self.library.versions, str(stage.expert)
        versions[name] = versions.get(name, 0) + 1  # each training of an expert has other draws
        self.focus(stage)

    def focus(self, stage: StageContext) -> None:
        """Enable gradients for the experts of a stage only, whether or not the stage trains."""
        self.stage = stage
        self.forget_trained()
        self.library.train_only(*stage.experts)

    def training_modalities(self) -> tuple[str, ...]:
        """Return the modalities that hold experts in training, in the order of the data flow."""
        present = {
            self.backbone.parts.modality_of(path)
            for name in self.training_experts
            for path, _ in self.library.parts(name)
        }
        return tuple(modality for modality in MODALITIES if modality in present)

    # -- routing ---------------------------------------------------------------------------

    def route(self, batch: Batch) -> Routing:
        """Route each sample; in training, to the stage's expert and possibly a partner."""
        phase: Phase = "test" if batch.labels is None else "train"
        current = self.stage.expert if phase == "train" else None
        repeated = phase == "test" or self.stage.epochs > 1  # else a sample occurs only once
        real = batch.real or len(batch)  # fillers take part in no vote
        query = RouteQuery(None, batch.task_names[:real], phase, current, self.experts)
        if self.router.needs(query):
            query = replace(query, embeddings=self.embed(batch, remember=repeated)[:real])
        with torch.autocast(self.device.type, enabled=False):  # same result at any precision
            return self.router.route(query).padded(len(batch))

    def embed(self, batch: Batch, *, remember: bool = True) -> Tensor:
        """Return the router embeddings of the samples, ``(B, D)`` fp32 on the CPU.

        Args:
            batch: The samples.
            remember: Whether to cache the embeddings.
        """
        with self.library.context.use(None), self.vision.recorded():
            return self.embedder(batch, remember=remember)

    def compute_embeddings(self, batch: Batch) -> Tensor:
        """Return the router embeddings ``(B, D)`` of all samples of a batch, known or not."""
        with self.library.context.use(None), self.vision.cached():
            return self.embedder.compute(batch)

    def make_gates(
        self,
        gates: Tensor,
        batch: Batch,
        beams: int = 1,
        *,
        recording: bool = False,
        order: Sequence[tuple[str, ...]] | None = None,
    ) -> Gates | None:
        """Bind gate weights ``(B, E)`` to a batch; None if there is no expert yet.

        Args:
            gates: The weights.
            batch: The batch of ``B`` samples.
            beams: Width of the beam search.
            recording: Whether linears that mix experts by token record their decisions.
            order: Experts of each sample, best first; the best soft prompt is next to the question.
                None takes the newest for the best.
        """
        if not self.experts:
            return None
        host = batch.host
        rows = self.backbone.vision_rows(host.inputs, host.image_counts, beams)
        mask, answered = batch.inputs.get("attention_mask"), None
        if recording and mask is not None and host.labels is not None:
            answered = answer_positions(host.labels).any(dim=1)  # (B,)
            # a repeated sample leaves no record
            mask = mask * to_device(answered, mask.device)[:, None]
        texts = None
        if self.router.mixing is not None and self.router.mixing.needs_texts:
            with self.library.context.use(None):
                texts = self.embedder.texts(batch)  # (B, D)
        made = Gates(self.experts, gates, rows, mask, recording, answered, texts)
        made.order = order
        if self.router.averages:
            made.average_outside(self.backbone.last_linears)
        return made

    # -- steps -----------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Unload past experts, so that all ranks hold the same tensors when they are compared."""
        self.library.hold_past()

    def base_loss(self, batch: Batch) -> Tensor:
        """Return the loss of the base model without experts, for scoring its units."""
        with self.library.context.use(None):
            return self._loss(batch)

    def _loss(self, batch: Batch) -> Tensor:
        labels_of(batch)
        with self.vision.cached():
            return self.backbone.answer_output(batch.inputs, batch.targets).loss()

    def loss_with(self, batch: Batch, *experts: str) -> Tensor:
        """Return the loss of a batch with the same experts, if any, for all samples."""
        if not experts:
            return self.base_loss(batch)
        self.library.past.trim()
        weights = torch.zeros(len(batch.task_names), len(self.experts))  # (B, E)
        weights[:, [self.experts.index(name) for name in experts]] = 1.0
        with self.library.context.use(self.make_gates(weights, batch)):
            return self._loss(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the share of a micro-batch in the loss of its optimizer step.

        A step descends the mean over the answer tokens of all its micro-batches on all ranks,
        like one process on the joint batch; each regularizer is a mean over its own unit, see
        :class:`~dmole.regularizers.base.Regularizer`. ``train/loss`` is logged once for each step,
        as the mean over its tokens. Dropout draws differ between ranks.

        Raises:
            ValueError: If gradients are accumulated and the batch does not know its window.
        """
        window, keys = self.window_of(batch), sample_keys(batch)
        self.guard.enter(keys, window.first)
        with self.vision.shared(keep=bool(self.regularizers)):  # their terms may run the model
            loss, step, idle = torch.zeros((), device=labels_of(batch).device), None, None
            if window.own.tokens:  # a rank whose only sample is a repetition has none
                loss, step = self.compute_step(batch)
                self.count_gate_sets(step)
            elif self.backbone.in_step:
                loss, idle = self.compute_step(batch)  # zero
            share = self.share_of(loss, window, keys)
            if idle is not None:
                self.regularizers.keep_in_step(idle)
            loss = share.weigh(loss, "tokens")
            loss = loss + self.regularizers.total(
                step, share, loss.device, self.log_term, self.watch_term
            )
        return self.anchored(loss)

    def position(self) -> str:
        """Return the current step as a part of a message."""
        return f"at step {self.global_step} of expert {self.stage.expert!r}"

    def compute_step(self, batch: Batch) -> tuple[Tensor, Step]:
        """Return the loss of a batch under its routed experts, and the step it comes from."""
        labels, targets = labels_of(batch), batch.targets
        self.library.past.trim()  # the graph of the micro-batch before is gone
        recording = self.regularizers.records or self.stage.observed
        routing = self.route(batch)
        gates = self.make_gates(routing.gates, batch, recording=recording, order=routing.order)

        def forward() -> Tensor:
            # without recording, unlike `gates`
            repeated = None
            if gates is not None:
                repeated = self.make_gates(gates.weights, batch, order=gates.order)
            with self.library.context.use(repeated):
                return self.backbone.answer_output(batch.inputs, targets).logits

        with self.library.context.use(gates):
            output = self.backbone.answer_output(batch.inputs, targets)
            loss = output.loss()
        step = Step(
            library=self.library,
            experts=self.training_experts,
            stage_tasks=self.stage.tasks,
            batch=batch,
            labels=labels,
            gates=gates,
            targets=targets,
            output=output,
            forward=forward,
            embed=functools.partial(self.embed, batch, remember=self.stage.epochs > 1),
            number=self.global_step,
            continued=versions_of(str(self.stage.expert), self.router.updates)[1:],
        )
        return loss, step

    def count_gate_sets(self, step: Step) -> None:
        """Count the samples of a step by gate set, without those that only fill the batch."""
        if step.gates is None:
            return
        training, used = self.training_experts, step.gates.used
        names = [name for name in training if name in used]
        names += [name for name in used if name not in training]
        columns = [self.experts.index(name) for name in names]
        chosen = (step.gates.weights[:, columns] != 0).tolist()  # (B, U)
        counted = (labels_of(step.batch.host) != IGNORED).any(dim=1).tolist()  # (B,)
        for task, row, counts in zip(step.batch.task_names, chosen, counted, strict=True):
            if counts:
                gate_set = gate_set_name(tuple(itertools.compress(names, row)))
                self.stage.gate_sets[task, gate_set] += 1

    def test_step(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Answers]:
        """Answer a batch of prompts."""
        return {"answers": self.answer(batch)}

    def answer(self, batch: Batch) -> Answers:
        """Answer a batch with the experts planned for each sample, or else the router's choice."""
        keys = sample_keys(batch)
        self.library.past.trim()
        with self.vision.shared():
            routing = self._planned(keys[: batch.real], len(batch)) or self.route(batch)
            order = routing.order
            gates = self.make_gates(routing.gates, batch, self.beams, order=order)
            with self.library.context.use(gates):
                length = self.evaluation.answer_length(batch.task_names)
                texts = self.backbone.generate(batch.inputs, length, self.beams)
        return Answers(keys[: batch.real], texts[: batch.real], order[: batch.real])

    def _planned(self, keys: Sequence[str], samples: int) -> Routing | None:
        """Return the planned experts of samples, and none for those that fill the batch."""
        order = self.evaluation.order(keys)
        if order is None:
            return None
        order = order + [()] * (samples - len(order))
        return route_by_name(order, self.experts, weights=self.evaluation.weights_of(keys))

    # -- optimization ----------------------------------------------------------------------

    def parameter_groups(self, *experts: str) -> list[dict[str, Any]]:
        """Return the parameters of experts that train, by modality, as an optimizer takes them."""
        return parameter_groups(
            (self.backbone.parts.modality_of(path), parameter)
            for name in experts
            for path, parameter in self.library.parameters(name)
            if parameter.requires_grad
        )

    def configure_optimizers(self) -> Any:
        """Return the optimizer over named groups (vision, projector, language) and its schedule."""
        groups = self.parameter_groups(*self.training_experts)
        if extra := list(self.regularizers.parameters()):
            groups.append({"name": "regularizer", "params": extra})
        optimizer = self.make_optimizer(groups)
        # Lightning counts the epochs of all stages so far; the schedule covers this stage only
        steps_per_epoch = self.trainer.estimated_stepping_batches / (self.trainer.max_epochs or 1)
        steps = self.stage.steps = round(steps_per_epoch * self.stage.epochs)
        scheduler = scheduled(optimizer, steps, self.warmup, self.schedule)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, *args: Any) -> None:
        """Step with the learning rate of each modality scaled by curriculum and allocator."""
        scale, factor = self.stage.update_scale, self.allocator.lr_factor
        if factor != 1.0:
            scale = {modality: factor * scale.get(modality, 1.0) for modality in MODALITIES}
        with scaled_learning_rates(optimizer, scale):
            super().optimizer_step(epoch, batch_idx, optimizer, *args)

    def collect_trained(self) -> dict[str, Tensor]:
        """Return the parameters that train, by names for messages."""
        experts: dict[str, Tensor] = {
            f"expert {name!r} at {path} ({key})": parameter
            for name in self.training_experts
            for path, expert in self.library.parts(name)
            for key, parameter in expert.named_parameters()
            if parameter.requires_grad
        }
        return experts | {
            f"parameter {key} of {type(term).__name__}": parameter
            for term in self.regularizers
            for key, parameter in term.named_parameters()
            if parameter.requires_grad
        }

    def on_train_start(self) -> None:
        """Enable dropout and seed it from seed, expert and rank."""
        self.forget_trained()  # regularizers may have made parameters since the stage began
        self.train()  # a model loaded from a folder starts in evaluation mode
        name = str(self.stage.expert)
        version = self.library.versions[name]
        torch.manual_seed(expert_seed(self.seed, "dropout", name, version, self.global_rank))

    # -- state -----------------------------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Return the tensors of experts and regularizers, not copied, without the base model."""
        experts = {
            f"{name}/{key}": tensor
            for name in self.library.names
            for key, tensor in self.library.tensors(name).items()
        }
        return experts | {
            f"{_REGULARIZER}{key}": tensor for key, tensor in self.regularizers.tensors().items()
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only the tensors that train; frozen experts are saved after their stages."""
        super().on_save_checkpoint(checkpoint)
        prefixes = (*(f"{name}/" for name in self.training_experts), _REGULARIZER)
        tensors = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in tensors.items() if k.startswith(prefixes)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the tensors of the frozen experts, which this module already holds."""
        self.restored.enter()
        checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load the tensors of experts and regularizers.

        Raises:
            ValueError: If a tensor is missing, unknown or of another shape.
        """
        for name in self.library.names:
            self.library.load_state_dict(name, _below(f"{name}/", state_dict))
        self.regularizers.load_tensors(_below(_REGULARIZER, state_dict))
        return torch.nn.modules.module._IncompatibleKeys([], [])


_REGULARIZER = "@regularizer/"  # no name of an expert begins with @


def _below(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def labels_of(batch: Batch) -> Tensor:
    """Return the labels of a batch; `ValueError` if it has none."""
    if batch.labels is None:
        raise ValueError("a batch without labels cannot be trained on")
    return batch.labels
