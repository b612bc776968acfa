"""Memory of a task on a base model of any size, computed from its shape alone.

The formulas count the allocations of this package: a frozen base model in its precision, experts
and optimizer in float32 and the gradients of the scored linears in float32; activations are in
`dmole.planning.activations`. They do not count buffers of kernels, of the memory allocator and of
communication.
"""

from __future__ import annotations

from dataclasses import dataclass

from dmole.models.answer_head import CHUNK_LOGITS
from dmole.planning.shape import ModelShape, Stack

FP32 = 4
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.516}
"""Bytes of a quantized weight; NF4 with nested scales adds 0.127 bits (QLoRA, section 3)."""

ADAM_MOMENTS = 2
MASK = 1
"""Bytes of an entry of a dropout mask on a GPU; on a CPU it has the type of the activation."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """A batch on one GPU, all of its samples of the same size.

    Args:
        samples: Number of samples.
        patches: Tokens of a sample in the vision encoder.
        tiles: Sequences that these are split into.
        tokens: Tokens of a sample in the language model, those of images included.
        answer_tokens: Those of the answer, the only ones whose logits are computed.
        element: Bytes of an activation: 2 with a base model in bfloat16.
    """

    samples: int
    patches: int
    tiles: int
    tokens: int
    answer_tokens: int
    element: int = 2

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of the batch in vision encoder and language model."""
        return self.samples * self.patches, self.samples * self.tokens


@dataclass(frozen=True, kw_only=True)
class ExpertSize:
    """What an expert adds to the blocks that hold it.

    Args:
        blocks: Blocks with an expert, in vision encoder and language model.
        channels: Low-rank channels of a linear.
        parameters: Parameters of the expert.
        mask: Bytes of an entry of the dropout mask; 0 without dropout. With dropout each linear
            keeps its own copy of its input, besides the mask.
        copies: Whether inputs are copied to float32, without mixed precision over a base model of
            another dtype.
        linears: Inputs and outputs of the linears that hold the expert.
    """

    blocks: tuple[int, int]
    channels: int
    parameters: int
    mask: int = 0
    copies: bool = False
    linears: tuple[tuple[int, int], ...] = ()


def expert_size(
    model: ModelShape, rank: int, share: float, *, mask: int = 0, copies: bool = False
) -> ExpertSize:
    """Return the size of an expert on a share of the blocks of each stack.

    Args:
        model: The base model.
        rank: Rank of the expert.
        share: Share of the blocks that get it.
        mask: See :class:`ExpertSize`.
        copies: See :class:`ExpertSize`.
    """
    chosen = [round(share * stack.blocks) for stack in model.stacks]
    parameters = sum(
        rank * count * sum(wide + out for wide, out, _ in stack.linears) // stack.blocks
        for stack, count in zip(model.stacks, chosen, strict=True)
    )
    return ExpertSize(
        blocks=(chosen[0], chosen[1]),
        channels=rank,
        parameters=parameters,
        mask=mask,
        copies=copies,
    )


def scored_parameters(stack: Stack) -> int:
    """Return the parameters of a stack that the proxy pass differentiates: its linears."""
    return sum(wide * out + out * bias for wide, out, bias in stack.linears)


def base_bytes(model: ModelShape, dtype: str, quantization: str | None = None) -> float:
    """Return the bytes of a base model.

    Args:
        model: The base model.
        dtype: Precision of its weights, or of those that are not quantized.
        quantization: ``8bit``, ``4bit`` or None.
    """
    if quantization is None:
        return model.parameters * DTYPE_BYTES[dtype]
    rest = model.parameters - model.linear_parameters
    return model.linear_parameters * QUANTIZED_BYTES[quantization] + rest * DTYPE_BYTES[dtype]


def sharded_bytes(
    model: ModelShape, dtype: str, ranks: int, *, whole: bool = False, repeated: bool = False
) -> tuple[float, float]:
    """Return the bytes of a base model in shards, and of what is gathered at a time.

    A part is received in a buffer, from which it is copied, so that it takes twice its bytes. The
    output linear stays whole, for the backward pass of the step and for passes that follow.

    Args:
        model: The base model.
        dtype: Precision of its weights.
        ranks: Processes that blocks, embeddings and output linear are split over.
        whole: Whether all of it is gathered, beside the shard.
        repeated: Whether a pass begins while the output linear is whole since the last one.
    """
    head = model.head_parameters or model.embedding_parameters  # a shared one is split twice
    blocks = sum(stack.parameters for stack in model.stacks)
    split = blocks + model.embedding_parameters + head
    rest = model.parameters - blocks - model.embedding_parameters - model.head_parameters
    block = max(stack.parameters / stack.blocks for stack in model.stacks)
    embeddings = 2 * model.embedding_parameters + head * repeated
    gathered = split if whole else max(embeddings, 2 * head, 2 * block + head)
    return (split / ranks + rest) * DTYPE_BYTES[dtype], gathered * DTYPE_BYTES[dtype]


def training_state_bytes(parameters: int, moments: int = ADAM_MOMENTS) -> int:
    """Return the bytes of trainable parameters, their gradients and the optimizer's state."""
    return parameters * FP32 * (2 + moments)


def autoencoder_bytes(model: ModelShape, components: int = 128, entry: int = FP32) -> int:
    """Return the bytes of the autoencoder of one task.

    Args:
        model: The base model.
        components: Width of the bottleneck.
        entry: Bytes of a number.
    """
    width = model.embedding_width
    return entry * (2 * width * components + components + width)


def loss_bytes(model: ModelShape, load: Load) -> int:
    """Return the peak bytes of the loss: logits, log-probabilities and gradient, in float32.

    Logits are computed in chunks, see `dmole.models.answer_head`; two of them are in memory.
    """
    chunk = max(1, CHUNK_LOGITS // model.vocabulary)
    tokens = min(load.samples * load.answer_tokens, 2 * chunk)
    copies = 2 * FP32 + (load.element if load.element != FP32 else 0)
    return tokens * model.vocabulary * copies


def proxy_gradient_bytes(
    model: ModelShape, *, summed: bool = True, passes: int = 1, ranks: int = 1
) -> int:
    """Return the bytes of the gradients that the proxy pass keeps on each GPU.

    Args:
        model: The base model.
        summed: True for the reductions ``sum`` and ``mean``, which keep the float32 gradient of
            every scored linear; false for the others, which keep one norm per tensor.
        passes: Groups of layers that are scored one after the other.
        ranks: Processes that each keep a part of the sum.
    """
    if summed:
        return FP32 * sum(map(scored_parameters, model.stacks)) // (passes * ranks)
    return sum(2 * FP32 * (1 + bias) for stack in model.stacks for *_, bias in stack.linears)


def moment_bytes(model: ModelShape, *, passes: int = 1) -> int:
    """Return the bytes of the moments of inputs that an initializer keeps on each GPU.

    Args:
        model: The base model.
        passes: Groups of linears that are measured one after the other.
    """
    widths = [wide + 1 for stack in model.stacks for wide, _, _ in stack.linears]
    return FP32 * sum(width**2 for width in widths) // passes


def largest_gradient_bytes(model: ModelShape) -> int:
    """Return the bytes of the float32 gradient of the largest scored weight."""
    return FP32 * max(wide * out for stack in model.stacks for wide, out, _ in stack.linears)


def cache_bytes(stack: Stack, sequences: int, tokens: int, element: int) -> int:
    """Return the bytes of keys and values of a generation.

    Args:
        stack: The language model.
        sequences: Sequences that are decoded together, each beam one.
        tokens: Tokens of a sequence, prompt included.
        element: Bytes of an entry.
    """
    return 2 * stack.blocks * stack.key_width * sequences * tokens * element
