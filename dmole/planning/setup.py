"""The settings that decide about memory and time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dmole.allocation import Allocator
from dmole.models.discovery import Patterns
from dmole.routing import Router
from dmole.streams.stream import Stage


@dataclass(frozen=True, kw_only=True)
class TaskSize:
    """Numbers of a task.

    Args:
        name: Name of the task.
        train: Training samples, counted once.
        passes: How often each is trained on.
        test: Test samples.
        new_tokens: Longest answer in evaluation.
        assumed: Splits whose size is assumed.
    """

    name: str
    train: int
    passes: int
    test: int
    new_tokens: int
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a plan reads of a config. The names are those of the config.

    Args:
        name_or_path: Base model.
        patterns: Overrides of the discovery of its parts.
        dtype: Precision of its weights.
        quantization: ``4bit``, ``8bit`` or None.
        image_settings: Settings of its image processor.
        precision: Precision of the trainer.
        devices: GPUs of a node.
        num_nodes: Nodes.
        sharded: Whether the base model is split over the GPUs.
        gathers: Whether a base model that is split is whole on each GPU in evaluation.
        evaluate: Tasks that are answered after a stage: ``all``, ``seen`` or ``last``.
        accumulate_grad_batches: Batches of an optimizer step.
        activation_checkpointing: Whether activations are recomputed.
        dropout: Dropout of experts.
        alpha: Numerator of the scaling of experts.
        beams: Width of the beam search.
        past_experts_on_device: Past experts that stay on a GPU between batches; None keeps all.
        projector_experts: Whether the projector may hold experts.
        allocator: The allocator.
        router: The router.
        regularizers: Classes of the regularizers with their arguments.
        rules: The gradient rules.
        moments: Numbers that the optimizer keeps for each parameter.
        batch_size: Samples of a training batch on a GPU, in the task with most.
        tasks_set_batches: Whether a task has a batch size of its own.
        max_tokens_per_batch: Most tokens of it, in place of ``batch_size``.
        eval_batch_size: Samples of a batch in generation and embedding.
        eval_tokens_per_batch: Most tokens of a batch in generation, in place of it.
        num_workers: Loader processes of each GPU.
        max_length: Most tokens of a sample.
        embedding_samples: Training samples of a task that its router is fitted to.
        stages: Stages of the sequence.
        tasks: Tasks by name; those that are only scored included.
    """

    name_or_path: str
    patterns: Patterns | None
    dtype: str
    quantization: str | None
    image_settings: Mapping[str, Any]
    precision: str
    devices: int
    num_nodes: int
    sharded: bool
    gathers: bool
    evaluate: str
    accumulate_grad_batches: int
    activation_checkpointing: bool
    dropout: float
    alpha: float
    beams: int
    past_experts_on_device: int | None
    projector_experts: bool
    allocator: Allocator
    router: Router
    regularizers: tuple[tuple[str, Mapping[str, Any]], ...]
    rules: tuple[object, ...]
    moments: int
    batch_size: int
    tasks_set_batches: bool
    max_tokens_per_batch: int | None
    eval_batch_size: int
    eval_tokens_per_batch: int | None
    num_workers: int
    max_length: int | None
    embedding_samples: int
    stages: tuple[Stage, ...]
    tasks: tuple[TaskSize, ...]

    @property
    def ranks(self) -> int:
        """Processes of the run, one for each GPU."""
        return self.devices * self.num_nodes

    @property
    def mixed(self) -> bool:
        """Whether products are computed in half precision by autocast."""
        return self.precision.endswith("-mixed")


@dataclass(frozen=True)
class Lengths:
    """Tokens of a sample.

    Args:
        text: Those of question and answer.
        answer: Those of the answer.
        images: Images of a sample.
    """

    text: int = 128
    answer: int = 16
    images: int = 1
