"""The language head on the positions that predict an answer token, in chunks of bounded size.

A batch has far more positions than answer tokens: image tokens, questions and padding. Their logits
are not computed. The model's own code computes the others, so a scale or soft cap of the logits
that follows the head is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from dmole.data.labels import Targets

CHUNK_LOGITS = 2**26
"""Logits of a chunk: 256 MiB in float32."""


class AnswerOutput:
    """Output of a model for the answer tokens of a batch.

    Args:
        head: Computes logits from such states.
        states: ``(M, H)`` last hidden states that predict the ``M`` answer tokens.
        logits: ``(m, V)`` logits of the first chunk.
        targets: The answer tokens.
    """

    def __init__(
        self, head: Callable[[Tensor], Tensor], states: Tensor, logits: Tensor, targets: Targets
    ) -> None:
        self._head = head
        self._states = states
        self._first = logits
        self._tokens = targets.tokens

    @property
    def logits(self) -> Tensor:
        """Logits of all answer tokens, ``(M, V)``, with their graph and not in chunks."""
        if len(self._first) < len(self._states):
            self._first = self._head(self._states)
        return self._first

    def loss(self) -> Tensor:
        """Return the mean cross-entropy over the answer tokens, a scalar.

        Without answer tokens it is zero, with a graph whose gradients are zero.

        The logits of all chunks but the first are computed again in the backward pass, so those
        of two chunks at most are in memory.
        """
        size, tokens = len(self._first), self._tokens
        if not len(tokens):
            return self._first.float().sum()
        if size == len(self._states):
            return cross_entropy(self._first.float(), tokens)
        total = cross_entropy(self._first.float(), tokens[:size], reduction="sum")
        parts = zip(*(torch.split(x[size:], size) for x in (self._states, tokens)), strict=True)
        for states, labels in parts:
            total = total + checkpoint(
                self._summed, states, labels, use_reentrant=False, preserve_rng_state=False
            )
        return total / len(tokens)

    def _summed(self, states: Tensor, tokens: Tensor) -> Tensor:
        return cross_entropy(self._head(states).float(), tokens, reduction="sum")


class _Head:
    """What a model computes from last hidden states: the head and all that follows it.

    Args:
        model: The model.
        inputs: Its arguments in this forward pass.
        output: Output of its base model in this forward pass.
    """

    def __init__(self, model: Any, inputs: dict[str, Any], output: Any) -> None:
        self._model = model
        self._inputs = inputs
        self._output = output

    def __call__(self, states: Tensor) -> Tensor:
        """Return the logits ``(m, V)`` of hidden states ``(m, H)``."""
        output = type(self._output)({**self._output, "last_hidden_state": states[None]})
        with _returning(self._model.base_model, output):
            logits: Tensor = self._model(**self._inputs).logits
        return logits[0]


def answer_output(
    model: Any, inputs: dict[str, Any], targets: Targets, limit: int | None = None
) -> AnswerOutput:
    """Run a model on a batch, and its head where an answer token is predicted.

    A model whose class has no base model computes all of these logits at once. One that does not
    name its head computes those of all positions.

    Args:
        model: A transformers model for image-text-to-text.
        inputs: Its arguments.
        targets: The answer tokens of the batch.
        limit: Maximum number of logits of a chunk; :data:`CHUNK_LOGITS` by default.

    Raises:
        ValueError: If the head reads other positions than those of the batch.
    """
    inputs = {**inputs, "use_cache": False}
    head, base, size = _language_head(model), model.base_model, len(targets.positions)
    if head is None:
        logits = model(**inputs).logits.flatten(0, 1).index_select(0, targets.positions)  # (M, V)
        return AnswerOutput(_identity, logits, logits, targets)
    if base is not model:
        vocabulary = model.config.get_text_config().vocab_size
        size = min(size, max(1, (limit or CHUNK_LOGITS) // vocabulary))
    states, outputs = [], []

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if args[0].shape[:2] != targets.shape:
            raise ValueError(
                f"the language head of {type(model).__name__} reads states of shape "
                f"{tuple(args[0].shape)}, but the labels are {tuple(targets.shape)}"
            )
        states.append(args[0].flatten(0, 1).index_select(0, targets.positions))  # (M, H)
        return (states[0][None, :size], *args[1:])

    hooks = [
        head.register_forward_pre_hook(select),
        base.register_forward_hook(lambda module, args, output: outputs.append(output)),
    ]
    try:
        logits = model(**inputs).logits[0]  # (m, V)
    finally:
        for hook in hooks:
            hook.remove()
    return AnswerOutput(_Head(model, inputs, outputs[0]), states[0], logits, targets)


def _identity(states: Tensor) -> Tensor:
    return states


def _language_head(model: Any) -> nn.Module | None:
    """Return the linear of the logits; None if the model does not name it."""
    try:
        head: nn.Module | None = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return head


@contextmanager
def _returning(module: Any, output: Any) -> Iterator[None]:
    """Let a module return an output, without computing it, for the body of a ``with`` statement."""
    module.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del module.forward
