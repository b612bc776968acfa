"""Memory of the activations of a batch, computed from the shape of the base model alone.

Activations are those that transformers keeps with fused (``sdpa``) attention.
"""

from __future__ import annotations

from dmole.planning.memory import FP32, ExpertSize, Load
from dmole.planning.shape import ModelShape, Stack


def block_activation_bytes(
    stack: Stack, tokens: int, element: int, *, inputs_kept: bool = False
) -> int:
    """Return the bytes that autograd saves of one frozen block for the backward pass.

    Args:
        stack: The stack of the block.
        tokens: Tokens of the batch.
        element: Bytes of an activation.
        inputs_kept: Whether the inputs of the linears are saved too, because weights are scored.
    """
    attention = 4 * stack.heads * stack.head_width  # queries, repeated keys and values, output
    kept = attention + stack.mlp_width * (3 if stack.gated else 1)
    if inputs_kept:
        kept += _shared_inputs(stack)
    norms = 2 * stack.width * (FP32 if stack.rms_norm else element)
    return tokens * (kept * element + norms + stack.heads * FP32)


def _shared_inputs(stack: Stack) -> int:
    """Return the entries of the inputs of linears that a frozen block does not keep.

    Those are the outputs of both norms and the input of the last linear.
    """
    return 2 * stack.width + stack.mlp_width


def expert_activation_bytes(stack: Stack, tokens: int, element: int, expert: ExpertSize) -> int:
    """Return the bytes that autograd saves of the expert in one block.

    Args:
        stack: The stack of the block.
        tokens: Tokens of the batch.
        element: Bytes of an activation.
        expert: The expert.
    """
    inputs = sum(wide for wide, _, _ in stack.linears) / stack.blocks
    kept = expert.channels * stack.linears_of_block * element
    if expert.copies:
        kept += inputs * (FP32 + expert.mask)
    elif expert.mask:
        kept += inputs * (element + expert.mask)
    else:
        kept += _shared_inputs(stack) * element
    return round(tokens * kept)


def training_activation_bytes(
    model: ModelShape, load: Load, expert: ExpertSize, *, recompute: bool = False
) -> int:
    """Return the bytes of the activations of a training step, without the loss.

    The first block of each stack is assumed to have an expert, so that all blocks save activations
    for the backward pass.

    Args:
        model: The base model.
        load: The batch.
        expert: The expert in training.
        recompute: Whether activation checkpointing keeps only the inputs of all blocks and the
            activations of one block at a time.
    """
    total = largest = 0
    for stack, tokens, chosen in zip(model.stacks, load.lengths, expert.blocks, strict=True):
        bare = block_activation_bytes(stack, tokens, load.element)
        added = expert_activation_bytes(stack, tokens, load.element, expert)
        if recompute:
            total += _inputs_of_blocks(stack, tokens, load)
            full = bare + (added if chosen else 0)
            largest = max(largest, full + _gradients_of_block(stack, tokens, load))
        else:
            total += stack.blocks * bare + chosen * added
    return total + largest


def _inputs_of_blocks(stack: Stack, tokens: int, load: Load) -> int:
    return stack.blocks * tokens * stack.width * load.element


def _gradients_of_block(stack: Stack, tokens: int, load: Load) -> int:
    """Return the bytes of the gradients of the two widest activations of a block."""
    return 2 * tokens * stack.mlp_width * load.element


def proxy_activation_bytes(model: ModelShape, load: Load, *, recompute: bool = False) -> int:
    """Return the bytes of the activations of the proxy pass, without the loss.

    Args:
        model: The base model.
        load: The batch.
        recompute: Whether activation checkpointing keeps only the inputs of all blocks and the
            activations of one block at a time.
    """
    total = largest = 0
    for stack, tokens in zip(model.stacks, load.lengths, strict=True):
        full = block_activation_bytes(stack, tokens, load.element, inputs_kept=True)
        if recompute:
            total += _inputs_of_blocks(stack, tokens, load)
            largest = max(largest, full + _gradients_of_block(stack, tokens, load))
        else:
            total += stack.blocks * full
    return total + largest


def forward_bytes(model: ModelShape, load: Load) -> int:
    """Return the bytes of activations of a forward pass without gradients: one block at a time."""
    return max(
        tokens * load.element * (4 * stack.width + 3 * stack.mlp_width)
        for stack, tokens in zip(model.stacks, load.lengths, strict=True)
    )
