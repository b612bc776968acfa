"""Recomputation of activations in the backward pass, also in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


@contextmanager
def recomputed_in_evaluation(model: nn.Module) -> Iterator[None]:
    """Recompute activations in evaluation mode in the body, where the model does in training.

    transformers recomputes the blocks that are in training mode. So the blocks are, but neither
    their submodules nor what they compute themselves: dropout stays off.

    Args:
        model: A model of transformers; without activation checkpointing nothing changes.
    """
    blocks: list[Any] = [
        block
        for block in model.modules()
        if isinstance(block, GradientCheckpointingLayer)
        and block.gradient_checkpointing
        and not block.training
    ]
    functions = [block._gradient_checkpointing_func for block in blocks]
    try:
        for block, function in zip(blocks, functions, strict=True):
            block._gradient_checkpointing_func = partial(_checkpoint, function, block)
            block.training = True
        yield
    finally:
        for block, function in zip(blocks, functions, strict=True):
            block._gradient_checkpointing_func = function
            block.training = False


def _checkpoint(function: Callable[..., Any], block: nn.Module, run: Any, *args: Any) -> Any:
    return function(partial(_in_evaluation, block, run), *args)


def _in_evaluation(block: nn.Module, run: Callable[..., Any], *args: Any) -> Any:
    """Run a block in evaluation mode, then set it back to training mode."""
    block.training = False
    try:
        return run(*args)
    finally:
        block.training = True
