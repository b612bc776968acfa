"""Floating-point work of a task, from the shape of the base model and the lengths of the data.

A product of a ``(T, in)`` with an ``(in, out)`` matrix counts ``2 T in out``. The backward pass
through a frozen linear costs as much as its forward pass: there is the gradient of the input
alone. Where weights are scored, that of the weight comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments.costs.scaling import Load, ModelSizes, Tower, expert_blocks

ATTENTION_BACKWARD = 2.5
"""Backward over forward work of fused attention, which computes the scores again."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A sequence of tasks as numbers of samples.

    Args:
        name: What it is called.
        tasks: Number of tasks.
        seen: Training samples, counted as often as they are trained on.
        distinct: Training samples, each counted once.
        tested: Test samples of all tasks.
        answer_tokens: Mean tokens generated for a test sample.
        source: Where the figures are from.
    """

    name: str
    tasks: int
    seen: int
    distinct: int
    tested: int
    answer_tokens: int
    source: str


def linear_flops(tower: Tower, tokens: int) -> int:
    """Return the forward work of all linears of a tower."""
    return 2 * tokens * tower.layers * sum(i * o for i, o, _ in tower.linears)


def attention_flops(tower: Tower, sequences: int, length: int) -> int:
    """Return the forward work of the attention scores, the masked half included."""
    return 4 * sequences * length**2 * tower.heads * tower.head_width * tower.layers


def head_flops(model: ModelSizes, tokens: int) -> int:
    """Return the forward work of the output layer."""
    return 2 * tokens * model.language.width * model.vocabulary


def pass_flops(
    model: ModelSizes, load: Load, *, backward: bool, weights: bool = False, recompute: bool = False
) -> int:
    """Return the work of one batch; projector and patch embedding are left out as small.

    Args:
        model: The base model.
        load: Batch and lengths; a sample has one picture.
        backward: Whether the gradient goes down through both towers.
        weights: Whether the linears' weights get gradients too, as in the proxy pass.
        recompute: Whether the backward pass computes the blocks again.
    """
    lengths = (model.patches, model.image_tokens + load.text_tokens)
    total = 0.0
    for tower, length in zip((model.vision, model.language), lengths, strict=True):
        linears = linear_flops(tower, load.batch * length)
        attention = attention_flops(tower, load.batch, length)
        total += (1 + backward + weights + recompute) * linears
        total += (1 + ATTENTION_BACKWARD * backward + recompute) * attention
    return round(total) + (1 + backward) * head_flops(model, load.batch * lengths[1])


def expert_flops(model: ModelSizes, load: Load) -> int:
    """Return the work of the trained expert in one batch, forward and backward."""
    lengths = (model.patches, model.image_tokens + load.text_tokens)
    return sum(
        6
        * load.batch
        * length
        * load.rank
        * expert_blocks(tower, load.share)
        * sum(i + o for i, o, _ in tower.linears)
        for tower, length in zip((model.vision, model.language), lengths, strict=True)
    )


def stream_flops(
    model: ModelSizes, load: Load, stream: Stream, *, proxy: float = 0.01, recompute: bool = False
) -> dict[str, float]:
    """Return the work of a sequence by phase.

    Args:
        model: The base model.
        load: Lengths and experts; the batch does not matter.
        stream: The tasks.
        proxy: Share of the training samples that is scored.
        recompute: Activation checkpointing in training.

    Returns:
        ``train``, ``allocate``, ``embed`` (every sample once) and ``evaluate``: row 0, and then
        each sample twice, once when its task is learned and once more in all for changed routes.
    """
    samples = load.batch
    training = pass_flops(model, load, backward=True, recompute=recompute)
    forward = pass_flops(model, load, backward=False)
    scored = pass_flops(model, load, backward=True, weights=True)
    token = linear_flops(model.language, 1) + head_flops(model, 1)
    vision = linear_flops(model.vision, samples * model.patches)
    embedded = vision + linear_flops(model.language, samples * load.text_tokens)
    return {
        "train": stream.seen / samples * (training + expert_flops(model, load)),
        "allocate": proxy * stream.distinct / samples * scored,
        "embed": (stream.distinct + stream.tested) / samples * embedded,
        "evaluate": 3 * stream.tested * (forward / samples + stream.answer_tokens * token),
    }


def gpu_hours(flops: float, peak: float, utilization: float) -> float:
    """Return the hours one GPU takes.

    Args:
        flops: The work.
        peak: Peak rate of the GPU in operations a second.
        utilization: Share of it that is reached, in ``(0, 1]``.

    Raises:
        ValueError: If the share is out of range.
    """
    if not 0 < utilization <= 1:
        raise ValueError(f"utilization must be in (0, 1], got {utilization}")
    return flops / (peak * utilization) / 3600
