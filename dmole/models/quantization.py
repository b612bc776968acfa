"""Base models with weights of 8 or 4 bits, through transformers and bitsandbytes."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

Quantization = Literal["8bit", "4bit"]


def quantization_config(quantization: Quantization, dtype: str) -> Any:
    """Return the transformers config that loads a model with quantized linears.

    4 bits are NF4 with nested scales, as in QLoRA (Dettmers et al. 2023,
    https://arxiv.org/abs/2305.14314); experts stay in full precision.

    Args:
        quantization: ``8bit`` or ``4bit``.
        dtype: Precision of the products of 4-bit linears and of all weights that are not quantized.

    Raises:
        ValueError: If bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            f"quantization {quantization} needs the package bitsandbytes: "
            "pip install 'dmole[quantized]'"
        )
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def entries(parameter: Tensor) -> int:
    """Return the number of weights of a parameter; 4-bit weights are packed in pairs."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else torch.Size(state.shape).numel()
