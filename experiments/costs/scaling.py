"""Memory of a task on a base model of any size, computed from its shape alone.

The formulas count the allocations of this package: a frozen base model in its precision, experts
and optimizer in float32, the gradients of the scored linears in float32, and the activations that
transformers keeps with fused (``sdpa``) attention. They do not count buffers of kernels, of the
memory allocator and of communication.
"""

from __future__ import annotations

from dataclasses import dataclass

FP32 = 4
ADAM_MOMENTS = 2


@dataclass(frozen=True, kw_only=True)
class BlockStack:
    """Shape of a stack of equal transformer blocks.

    Args:
        width: Width of the hidden states.
        blocks: Number of blocks.
        heads: Query heads of width ``head_width``.
        key_heads: Heads of keys and of values.
        head_width: Width of a head.
        mlp_width: Hidden width of the MLP.
        gated: Whether the MLP has a gate (SwiGLU: three linears instead of two).
        rms_norm: Whether the norms are RMSNorm, which computes in float32 and has no bias, instead
            of LayerNorm.
        qkv_bias: Whether queries, keys and values have biases.
        bias: Whether the other linears have biases.
        fused_qkv: Whether queries, keys and values are one linear.
        layer_scale: Whether both branches are scaled by a vector.
        other: Parameters outside the blocks, without token embeddings.
    """

    width: int
    blocks: int
    heads: int
    key_heads: int
    head_width: int
    mlp_width: int
    gated: bool
    rms_norm: bool
    qkv_bias: bool
    bias: bool
    other: int
    fused_qkv: bool = False
    layer_scale: bool = False

    @property
    def linears(self) -> tuple[tuple[int, int, bool], ...]:
        """Linears of a block as ``(in, out, has a bias)``."""
        width, query, key = self.width, self.heads * self.head_width, self.key_width
        if self.fused_qkv:
            attention = [(width, query + 2 * key, self.qkv_bias)]
        else:
            attention = [(width, out, self.qkv_bias) for out in (query, key, key)]
        ups = [(width, self.mlp_width, self.bias)] * (2 if self.gated else 1)
        return (*attention, (query, width, self.bias), *ups, (self.mlp_width, width, self.bias))

    @property
    def key_width(self) -> int:
        """Total width of all keys."""
        return self.key_heads * self.head_width


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Shape of a multimodal language model.

    Args:
        name: Name of the model.
        vision: The vision encoder.
        language: The language model without its token embeddings.
        projector: Parameters of the projector.
        vocabulary: Rows of the token embeddings.
        tied: Whether the output linear shares the weights of the token embeddings.
        patches: Tokens of one image in the vision encoder.
        image_tokens: Tokens of one image in the language model.
        source: Source of the figures.
    """

    name: str
    vision: BlockStack
    language: BlockStack
    projector: int
    vocabulary: int
    tied: bool
    patches: int
    image_tokens: int
    source: str


@dataclass(frozen=True, kw_only=True)
class Load:
    """Settings of the training on one GPU.

    Args:
        batch: Samples per step, one image each.
        text_tokens: Tokens of question and answer.
        answer_tokens: Those of the answer, the only ones whose logits are computed.
        rank: Rank of an expert.
        share: Share of the blocks of each stack that get an expert.
        base_bytes: Bytes per weight of the frozen base model: 2 for bfloat16.
    """

    batch: int = 4
    text_tokens: int = 128
    answer_tokens: int = 16
    rank: int = 8
    share: float = 0.5
    base_bytes: int = 2


def scored_parameters(stack: BlockStack) -> int:
    """Return the parameters of a stack that the proxy pass differentiates: its linears."""
    return stack.blocks * sum(i * o + o * bias for i, o, bias in stack.linears)


def stack_parameters(stack: BlockStack) -> int:
    """Return all parameters of a stack without token embeddings."""
    vectors = 2 * stack.width * (1 if stack.rms_norm else 2)
    if stack.layer_scale:
        vectors += 2 * stack.width
    return scored_parameters(stack) + stack.blocks * vectors + stack.other


def base_parameters(model: ModelSizes) -> int:
    """Return all parameters of a base model."""
    embeddings = model.vocabulary * model.language.width * (1 if model.tied else 2)
    stacks = stack_parameters(model.vision) + stack_parameters(model.language)
    return stacks + model.projector + embeddings


def expert_parameters(stack: BlockStack, blocks: int, rank: int) -> int:
    """Return the parameters of the experts of some blocks: ``rank * (in + out)`` per linear."""
    return blocks * rank * sum(i + o for i, o, _ in stack.linears)


def expert_blocks(stack: BlockStack, share: float) -> int:
    """Return the number of blocks of a stack that get an expert."""
    return round(share * stack.blocks)


def task_parameters(model: ModelSizes, load: Load) -> int:
    """Return the parameters of the expert of one task in vision encoder and language model."""
    stacks = (model.vision, model.language)
    return sum(expert_parameters(t, expert_blocks(t, load.share), load.rank) for t in stacks)


def training_state_bytes(parameters: int) -> int:
    """Return the bytes of trainable parameters, their gradients and both moments of Adam."""
    return parameters * FP32 * (2 + ADAM_MOMENTS)


def router_bytes(model: ModelSizes, components: int = 128) -> int:
    """Return the bytes of the autoencoder of one task on vision and language embeddings."""
    width = model.vision.width + model.language.width
    return FP32 * (2 * width * components + components + width)


def block_activation_bytes(
    stack: BlockStack, tokens: int, element: int, *, inputs_kept: bool, rank: int = 0
) -> int:
    """Return the bytes that autograd saves of one frozen block for the backward pass.

    Args:
        stack: The stack of the block.
        tokens: Tokens of the batch.
        element: Bytes per activation.
        inputs_kept: Whether the inputs of the linears are saved too, because weights are scored or
            the block has an expert.
        rank: Rank of the expert of the block, 0 without an expert.
    """
    attention = 4 * stack.heads * stack.head_width  # queries, repeated keys and values, output
    mlp = stack.mlp_width * (3 if stack.gated else 1)
    kept = attention + mlp
    if inputs_kept:  # of the linears after both norms and the last linear; `attention` has the rest
        kept += 2 * stack.width + stack.mlp_width
    kept += rank * len(stack.linears)
    norms = 2 * stack.width * (FP32 if stack.rms_norm else element)
    return tokens * (kept * element + norms + stack.heads * FP32)


def loss_bytes(model: ModelSizes, tokens: int, element: int) -> int:
    """Return the peak bytes of the loss: logits, log-probabilities and gradient, in float32.

    Args:
        model: The base model.
        tokens: Answer tokens of the batch.
        element: Bytes per activation.
    """
    copies = 2 * FP32 + (element if element != FP32 else 0)
    return tokens * model.vocabulary * copies


def lengths(model: ModelSizes, load: Load) -> tuple[int, int]:
    """Return the tokens of a batch in the vision encoder and in the language model."""
    return load.batch * model.patches, load.batch * (model.image_tokens + load.text_tokens)


def training_activation_bytes(model: ModelSizes, load: Load, *, recompute: bool = False) -> int:
    """Return the bytes of the activations of a training step, without the loss.

    The first block of each stack is assumed to have an expert, so that all blocks save activations
    for the backward pass.

    Args:
        model: The base model.
        load: Batch, lengths and experts.
        recompute: Whether activation checkpointing keeps only the inputs of all blocks and the
            activations of one block at a time.
    """
    total = largest = 0
    for stack, tokens in zip((model.vision, model.language), lengths(model, load), strict=True):
        chosen = expert_blocks(stack, load.share)
        bare, full = (
            block_activation_bytes(
                stack, tokens, load.base_bytes, inputs_kept=expert, rank=load.rank * expert
            )
            for expert in (False, True)
        )
        if recompute:
            total += stack.blocks * tokens * stack.width * load.base_bytes
            # the backward pass of a block holds the gradients of its two widest activations
            gradients = 2 * tokens * stack.mlp_width * load.base_bytes
            largest = max(largest, full + gradients)
        else:
            total += chosen * full + (stack.blocks - chosen) * bare
    return total + largest


def proxy_activation_bytes(model: ModelSizes, load: Load) -> int:
    """Return the bytes of the activations of the proxy pass, without loss and recomputation."""
    stacks = zip((model.vision, model.language), lengths(model, load), strict=True)
    return sum(
        stack.blocks * block_activation_bytes(stack, tokens, load.base_bytes, inputs_kept=True)
        for stack, tokens in stacks
    )


def proxy_gradient_bytes(model: ModelSizes, *, summed: bool = True) -> int:
    """Return the bytes of the gradients that the proxy pass keeps.

    Args:
        model: The base model.
        summed: True for the reductions ``sum`` and ``mean``, which keep the float32 gradient of
            every scored linear; false for the others, which keep one norm per tensor.
    """
    if summed:
        return FP32 * (scored_parameters(model.vision) + scored_parameters(model.language))
    stacks = (model.vision, model.language)
    return sum(2 * FP32 * t.blocks * sum(1 + bias for *_, bias in t.linears) for t in stacks)


def cache_bytes(model: ModelSizes, batch: int, tokens: int, element: int) -> int:
    """Return the bytes of keys and values for sequences of ``tokens``, prompt included."""
    stack = model.language
    return 2 * stack.blocks * stack.key_width * batch * tokens * element
