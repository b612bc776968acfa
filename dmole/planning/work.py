"""Floating-point operations of a task, from the shape of the base model and the data lengths.

The product of a ``(T, in)`` and an ``(in, out)`` matrix counts ``2 T in out``. The backward pass
through a frozen linear costs as much as its forward pass, because it computes only the gradient of
the input. The gradient of a scored weight costs the same again.
"""

from __future__ import annotations

from dmole.planning.memory import ExpertSize, Load
from dmole.planning.shape import ModelShape, Stack

ATTENTION_BACKWARD = 2.5
"""Ratio of backward to forward work of fused attention, which recomputes the scores."""


def linear_flops(stack: Stack, tokens: int) -> int:
    """Return the forward work of all linears of a stack."""
    return 2 * tokens * sum(wide * out for wide, out, _ in stack.linears)


def attention_flops(stack: Stack, sequences: int, length: int) -> int:
    """Return the forward work of attention, including the masked half."""
    return 4 * sequences * length**2 * stack.heads * stack.head_width * stack.blocks


def head_flops(model: ModelShape, tokens: int) -> int:
    """Return the forward work of the output linear."""
    return 2 * tokens * model.language.width * model.vocabulary


def pass_flops(
    model: ModelShape, load: Load, *, backward: bool, weights: bool = False, recompute: bool = False
) -> int:
    """Return the work of one batch; projector and patch embedding are negligible and left out.

    Args:
        model: The base model.
        load: The batch. The output linear runs on its answers alone.
        backward: Whether there is a backward pass through language model and vision encoder.
        weights: Whether the weights of the linears get gradients too, as in the proxy pass.
        recompute: Whether the backward pass recomputes the blocks.
    """
    sequences = ((load.tiles, load.patches // load.tiles), (1, load.tokens))
    total = 0.0
    for stack, tokens, (count, length) in zip(model.stacks, load.lengths, sequences, strict=True):
        attention = attention_flops(stack, load.samples * count, length)
        total += (1 + backward + weights + recompute) * linear_flops(stack, tokens)
        total += (1 + ATTENTION_BACKWARD * backward + recompute) * attention
    return round(total) + (1 + backward) * head_flops(model, load.samples * load.answer_tokens)


def expert_flops(model: ModelShape, load: Load, expert: ExpertSize) -> int:
    """Return the work of the trained expert in one batch, forward and backward."""
    return sum(
        6
        * tokens
        * expert.channels
        * chosen
        * sum(wide + out for wide, out, _ in stack.linears)
        // stack.blocks
        for stack, tokens, chosen in zip(model.stacks, load.lengths, expert.blocks, strict=True)
    )


def embedding_flops(model: ModelShape, load: Load, text_tokens: int) -> int:
    """Return the work of the router embeddings of one batch: images, and questions without them.

    Args:
        model: The base model.
        load: The batch.
        text_tokens: Tokens of a sample without those of images.
    """
    vision = linear_flops(model.vision, load.lengths[0])
    return vision + linear_flops(model.language, load.samples * text_tokens)


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
