"""Floating-point operations of a task, from the shape of the base model and the data lengths.

The product of a ``(T, in)`` and an ``(in, out)`` matrix counts ``2 T in out``. The backward pass
through a frozen linear costs as much as its forward pass, because it computes only the gradient of
the input. The gradient of a scored weight costs the same again.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments.costs.scaling import BlockStack, Load, ModelSizes, expert_blocks

ATTENTION_BACKWARD = 2.5
"""Ratio of backward to forward work of fused attention, which recomputes the scores."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Numbers of samples of a sequence of tasks.

    Args:
        name: Name of the sequence.
        tasks: Number of tasks.
        seen: Training samples, counted once per epoch and repeat.
        distinct: Training samples, each counted once.
        tested: Test samples of all tasks.
        answer_tokens: Mean number of tokens generated per test sample.
        source: Source of the figures.
    """

    name: str
    tasks: int
    seen: int
    distinct: int
    tested: int
    answer_tokens: int
    source: str


def linear_flops(stack: BlockStack, tokens: int) -> int:
    """Return the forward work of all linears of a stack."""
    return 2 * tokens * stack.blocks * sum(i * o for i, o, _ in stack.linears)


def attention_flops(stack: BlockStack, sequences: int, length: int) -> int:
    """Return the forward work of attention, including the masked half."""
    return 4 * sequences * length**2 * stack.heads * stack.head_width * stack.blocks


def head_flops(model: ModelSizes, tokens: int) -> int:
    """Return the forward work of the output linear."""
    return 2 * tokens * model.language.width * model.vocabulary


def pass_flops(
    model: ModelSizes, load: Load, *, backward: bool, weights: bool = False, recompute: bool = False
) -> int:
    """Return the work of one batch; projector and patch embedding are negligible and left out.

    Args:
        model: The base model.
        load: Batch and lengths; a sample has one image. The output linear runs on answers alone.
        backward: Whether there is a backward pass through language model and vision encoder.
        weights: Whether the weights of the linears get gradients too, as in the proxy pass.
        recompute: Whether the backward pass recomputes the blocks.
    """
    lengths = (model.patches, model.image_tokens + load.text_tokens)
    total = 0.0
    for stack, length in zip((model.vision, model.language), lengths, strict=True):
        linears = linear_flops(stack, load.batch * length)
        attention = attention_flops(stack, load.batch, length)
        total += (1 + backward + weights + recompute) * linears
        total += (1 + ATTENTION_BACKWARD * backward + recompute) * attention
    return round(total) + (1 + backward) * head_flops(model, load.batch * load.answer_tokens)


def expert_flops(model: ModelSizes, load: Load) -> int:
    """Return the work of the trained expert in one batch, forward and backward."""
    lengths = (model.patches, model.image_tokens + load.text_tokens)
    return sum(
        6
        * load.batch
        * length
        * load.rank
        * expert_blocks(stack, load.share)
        * sum(i + o for i, o, _ in stack.linears)
        for stack, length in zip((model.vision, model.language), lengths, strict=True)
    )


def sequence_flops(
    model: ModelSizes,
    load: Load,
    workload: Workload,
    *,
    proxy: float = 0.01,
    recompute: bool = False,
) -> dict[str, float]:
    """Return the work of a sequence by phase.

    Args:
        model: The base model.
        load: Lengths and experts; the batch does not matter.
        workload: The tasks.
        proxy: Share of the training samples that the proxy pass scores.
        recompute: Whether training uses activation checkpointing.

    Returns:
        Work of ``train``, ``allocate``, ``embed`` (every sample once) and ``evaluate``. Evaluation
        answers every test sample three times: for row 0, after its task is learned, and on average
        once more for changed routes.
    """
    samples = load.batch
    training = pass_flops(model, load, backward=True, recompute=recompute)
    forward = pass_flops(model, load, backward=False)
    scored = pass_flops(model, load, backward=True, weights=True)
    token = linear_flops(model.language, 1) + head_flops(model, 1)
    vision = linear_flops(model.vision, samples * model.patches)
    embedded = vision + linear_flops(model.language, samples * load.text_tokens)
    return {
        "train": workload.seen / samples * (training + expert_flops(model, load)),
        "allocate": proxy * workload.distinct / samples * scored,
        "embed": (workload.distinct + workload.tested) / samples * embedded,
        "evaluate": 3 * workload.tested * (forward / samples + workload.answer_tokens * token),
    }


def gpu_hours(flops: float, peak: float, utilization: float) -> float:
    """Return the hours that one GPU takes.

    Args:
        flops: The work in floating-point operations.
        peak: Peak rate of the GPU in operations per second.
        utilization: Fraction of the peak rate that is reached, in ``(0, 1]``.

    Raises:
        ValueError: If the utilization is out of range.
    """
    if not 0 < utilization <= 1:
        raise ValueError(f"utilization must be in (0, 1], got {utilization}")
    return flops / (peak * utilization) / 3600
