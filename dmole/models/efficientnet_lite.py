"""EfficientNet-Lite0 as a vision encoder of transformers, its 1x1 convolutions as linears.

A 1x1 convolution multiplies the channels of each position by one matrix, as a linear does. Written
as linears, they can hold experts. Batch normalization is folded into the weights, since the encoder
is frozen.

Source:
    EfficientNet, 2019, https://arxiv.org/abs/1905.11946; EfficientNet-Lite, 2020 (no
    squeeze-and-excitation, ReLU6, stem and head of a fixed width).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

STAGES = (
    # blocks, kernel, stride of the first, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD = 32, 1280
CELL = 32
"""Height and width in pixels of the region that one image token covers."""
MEAN, STD = 127 / 255, 128 / 255
"""Normalization of pixels in [0, 1], as in the pretraining."""


class EfficientNetLiteConfig(PretrainedConfig):  # type: ignore[misc]
    """Configuration of the encoder.

    Args:
        image_size: Height and width of an image in pixels, a multiple of `CELL`.
        stages: Number of blocks, kernel, stride of the first block, expansion and channels of each
            stage.
        stem: Channels of the first convolution.
        hidden_size: Width of the image tokens.
    """

    model_type = "efficientnet_lite"

    def __init__(
        self,
        image_size: int = 192,
        stages: Any = STAGES,
        stem: int = STEM,
        hidden_size: int = HEAD,
        **options: Any,
    ) -> None:
        self.image_size = image_size
        self.stages = [list(stage) for stage in stages]
        self.stem = stem
        self.hidden_size = hidden_size
        self.num_hidden_layers = sum(stage[0] for stage in self.stages)
        super().__init__(**options)


class SameConv(nn.Conv2d):
    """A convolution padded as in TensorFlow: the odd pixel goes to the right and the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, out, ceil(H / stride), ceil(W / stride))``."""
        pads: list[int] = []
        for size, kernel, stride in zip(
            reversed(x.shape[-2:]), self.kernel_size, self.stride, strict=True
        ):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(functional.pad(x, pads))


class LiteBlock(nn.Module):
    """An inverted bottleneck: widen, filter each channel, narrow.

    Args:
        inputs: Channels of the input.
        channels: Channels of the output.
        expansion: Factor of the widening; 1 for none.
        kernel: Height and width of the filter.
        stride: Stride of the filter.
    """

    def __init__(
        self, inputs: int, channels: int, expansion: int, kernel: int, stride: int
    ) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = nn.Linear(inputs, width) if expansion > 1 else None
        self.filter = SameConv(width, width, kernel, stride, groups=width)
        self.project = nn.Linear(width, channels)
        self.skips = stride == 1 and inputs == channels

    def forward(self, hidden_states: Tensor, side: int) -> Tensor:
        """Return the positions after the block.

        Args:
            hidden_states: ``(B, side * side, inputs)``.
            side: Height and width in positions.

        Returns:
            ``(B, N, channels)``.
        """
        x: Tensor = hidden_states
        if self.expand is not None:
            x = functional.relu6(self.expand(x))
        x = x.transpose(1, 2).reshape(len(x), -1, side, side)
        x = functional.relu6(self.filter(x)).flatten(2).transpose(1, 2)
        x = self.project(x)
        return x + hidden_states if self.skips else x


class EfficientNetLite(PreTrainedModel):  # type: ignore[misc]
    """The encoder.

    Args:
        config: Its configuration.
    """

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["LiteBlock"]  # noqa: RUF012 as in transformers

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = SameConv(3, config.stem, 3, 2)
        self.blocks = nn.ModuleList()
        self.strides: list[int] = []
        channels = config.stem
        for blocks, kernel, stride, expansion, width in config.stages:
            for index in range(blocks):
                step = 1 if index else stride
                self.blocks.append(LiteBlock(channels, width, expansion, kernel, step))
                self.strides.append(step)
                channels = width
        self.head = nn.Linear(channels, config.hidden_size)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Return the image tokens, ``(B, N, hidden_size)``, and their mean, ``(B, hidden_size)``.

        Args:
            pixel_values: ``(B, 3, H, W)``.
        """
        x = functional.relu6(self.stem(pixel_values.to(self.dtype)))
        side = x.shape[-1]
        x = x.flatten(2).transpose(1, 2)
        for block, stride in zip(self.blocks, self.strides, strict=True):
            x = block(x, side)
            side = -(-side // stride)
        x = functional.relu6(self.head(x))
        return BaseModelOutputWithPooling(
            last_hidden_state=x, pooler_output=x.mean(1), hidden_states=(x,)
        )


def register() -> None:
    """Let transformers find the encoder by the ``model_type`` of its configuration."""
    AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
    AutoModel.register(EfficientNetLiteConfig, EfficientNetLite, exist_ok=True)
