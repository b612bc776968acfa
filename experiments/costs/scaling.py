"""Memory and work of a task on a base model of any size, from its shape alone. Pure arithmetic.

What is counted is what the code of this package allocates: a frozen base in its own precision,
experts and optimizer in float32, the gradients of the scored layers in float32, activations as
transformers keeps them with fused (``sdpa``) attention. Not counted: buffers of kernels, of the
allocator and of communication.
"""

from __future__ import annotations

from dataclasses import dataclass

FP32 = 4
ADAM_MOMENTS = 2


@dataclass(frozen=True, kw_only=True)
class Tower:
    """Shape of a stack of equal transformer blocks.

    Args:
        width: Width of the hidden states.
        layers: Number of blocks.
        heads: Query heads of width ``head_width``.
        key_heads: Heads of keys and of values.
        head_width: Width of a head.
        mlp_width: Width between the linears of the MLP.
        gated: Whether the MLP has a gate (SwiGLU: three linears instead of two).
        rms_norm: RMSNorm, which computes in float32 and has no bias, instead of LayerNorm.
        qkv_bias: Whether queries, keys and values have biases.
        bias: Whether the other linears have biases.
        fused_qkv: Whether queries, keys and values are one linear.
        layer_scale: Whether both branches are scaled by a vector.
        other: Parameters outside the blocks, token embeddings not counted.
    """

    width: int
    layers: int
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
        """``(in, out, has a bias)`` of the linears of a block."""
        width, query, key = self.width, self.heads * self.head_width, self.key_width
        if self.fused_qkv:
            attention = [(width, query + 2 * key, self.qkv_bias)]
        else:
            attention = [(width, out, self.qkv_bias) for out in (query, key, key)]
        ups = [(width, self.mlp_width, self.bias)] * (2 if self.gated else 1)
        return (*attention, (query, width, self.bias), *ups, (self.mlp_width, width, self.bias))

    @property
    def key_width(self) -> int:
        """Width of all keys together."""
        return self.key_heads * self.head_width


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Shape of a multimodal language model.

    Args:
        name: What it is called.
        vision: The vision tower.
        language: The language model without its token embeddings.
        projector: Parameters between the two.
        vocabulary: Rows of the token embeddings.
        tied: Whether the output layer is the token embeddings.
        patches: Tokens of one picture in the vision tower.
        image_tokens: Tokens of one picture in the language model.
        source: Where the figures are from.
    """

    name: str
    vision: Tower
    language: Tower
    projector: int
    vocabulary: int
    tied: bool
    patches: int
    image_tokens: int
    source: str


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is done with the model on one GPU.

    Args:
        batch: Samples a step, one picture each.
        text_tokens: Tokens of question and answer.
        rank: Rank of an expert.
        share: Share of the blocks of each tower that get an expert.
        base_bytes: Bytes of a weight of the frozen base: 2 for bfloat16.
    """

    batch: int = 4
    text_tokens: int = 128
    rank: int = 8
    share: float = 0.5
    base_bytes: int = 2


def scored_parameters(tower: Tower) -> int:
    """Return the parameters of a tower that the proxy pass differentiates: its linears."""
    return tower.layers * sum(i * o + o * bias for i, o, bias in tower.linears)


def tower_parameters(tower: Tower) -> int:
    """Return all parameters of a tower, token embeddings not counted."""
    vectors = 2 * tower.width * (1 if tower.rms_norm else 2)
    if tower.layer_scale:
        vectors += 2 * tower.width
    return scored_parameters(tower) + tower.layers * vectors + tower.other


def base_parameters(model: ModelSizes) -> int:
    """Return all parameters of a base model."""
    embeddings = model.vocabulary * model.language.width * (1 if model.tied else 2)
    towers = tower_parameters(model.vision) + tower_parameters(model.language)
    return towers + model.projector + embeddings


def expert_parameters(tower: Tower, blocks: int, rank: int) -> int:
    """Return the parameters of the experts in some blocks: ``rank * (in + out)`` a linear."""
    return blocks * rank * sum(i + o for i, o, _ in tower.linears)


def expert_blocks(tower: Tower, share: float) -> int:
    """Return how many blocks of a tower get an expert."""
    return round(share * tower.layers)


def task_parameters(model: ModelSizes, load: Load) -> int:
    """Return the parameters of one task's experts in both towers."""
    towers = (model.vision, model.language)
    return sum(expert_parameters(t, expert_blocks(t, load.share), load.rank) for t in towers)


def training_state_bytes(parameters: int) -> int:
    """Return the bytes of trainable experts, their gradients and both moments of Adam."""
    return parameters * FP32 * (2 + ADAM_MOMENTS)


def router_bytes(model: ModelSizes, components: int = 128) -> int:
    """Return the bytes of one task's autoencoder on the embedding of both towers."""
    width = model.vision.width + model.language.width
    return FP32 * (2 * width * components + components + width)


def block_activation_bytes(
    tower: Tower, tokens: int, element: int, *, inputs_kept: bool, rank: int = 0
) -> int:
    """Return what autograd keeps of one frozen block for the backward pass.

    Args:
        tower: The tower of the block.
        tokens: Tokens of the batch.
        element: Bytes of an activation.
        inputs_kept: Whether the inputs of the linears are kept too: where weights are scored, or
            where the block has an expert.
        rank: Rank of the block's expert, 0 without one.
    """
    attention = 4 * tower.heads * tower.head_width  # queries, repeated keys and values, output
    mlp = tower.mlp_width * (3 if tower.gated else 1)
    kept = attention + mlp
    if inputs_kept:  # of the linears behind both norms and of the last one; the output's is known
        kept += 2 * tower.width + tower.mlp_width
    kept += rank * len(tower.linears)
    norms = 2 * tower.width * (FP32 if tower.rms_norm else element)
    return tokens * (kept * element + norms + tower.heads * FP32)


def loss_bytes(model: ModelSizes, tokens: int, element: int) -> int:
    """Return the peak of the loss: logits, log-probabilities and the gradient, in float32."""
    copies = 2 * FP32 + (element if element != FP32 else 0)
    return tokens * model.vocabulary * copies


def lengths(model: ModelSizes, load: Load) -> tuple[int, int]:
    """Return the tokens of a batch in the vision tower and in the language model."""
    return load.batch * model.patches, load.batch * (model.image_tokens + load.text_tokens)


def training_activation_bytes(model: ModelSizes, load: Load, *, recompute: bool = False) -> int:
    """Return the activations of a training step, without the loss.

    An expert in the first block of each tower is assumed, so that all blocks keep what the
    gradient needs on its way down.

    Args:
        model: The base model.
        load: Batch, lengths, experts.
        recompute: Activation checkpointing: the inputs of all blocks, and one block as a whole.
    """
    total = largest = 0
    for tower, tokens in zip((model.vision, model.language), lengths(model, load), strict=True):
        chosen = expert_blocks(tower, load.share)
        bare, full = (
            block_activation_bytes(
                tower, tokens, load.base_bytes, inputs_kept=expert, rank=load.rank * expert
            )
            for expert in (False, True)
        )
        if recompute:
            total += tower.layers * tokens * tower.width * load.base_bytes
            largest = max(largest, full)
        else:
            total += chosen * full + (tower.layers - chosen) * bare
    return total + largest


def proxy_activation_bytes(model: ModelSizes, load: Load) -> int:
    """Return the activations of the proxy pass, without the loss; it never recomputes."""
    towers = zip((model.vision, model.language), lengths(model, load), strict=True)
    return sum(
        tower.layers * block_activation_bytes(tower, tokens, load.base_bytes, inputs_kept=True)
        for tower, tokens in towers
    )


def proxy_gradient_bytes(model: ModelSizes, *, summed: bool = True) -> int:
    """Return what the proxy pass keeps of gradients.

    Args:
        model: The base model.
        summed: Reductions ``sum`` and ``mean`` keep the float32 gradient of every scored layer,
            the others a norm of each tensor.
    """
    if summed:
        return FP32 * (scored_parameters(model.vision) + scored_parameters(model.language))
    towers = (model.vision, model.language)
    return sum(2 * FP32 * t.layers * sum(1 + bias for *_, bias in t.linears) for t in towers)


def cache_bytes(model: ModelSizes, batch: int, tokens: int, element: int) -> int:
    """Return the keys and values of a generation of ``tokens`` in all, prompt included."""
    tower = model.language
    return 2 * tower.layers * tower.key_width * batch * tokens * element
