"""Asks the base model for the expert of a sample, with the adapter of a generative router."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from dmole.experts import Gates
from dmole.experts.library import eval_mode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from dmole.data.batch import Batch
    from dmole.experts import ExpertLibrary
    from dmole.experts.shape import ExpertShape
    from dmole.models.backbone import Backbone
    from dmole.routing.generative import GenerativeRouter, NameTree

ADAPTER = "@router"
"""Name of the adapter in the library; no expert can have it."""


class HoldsModel(Protocol):
    """A base model with its experts."""

    @property
    def backbone(self) -> Backbone:
        """The base model."""

    @property
    def library(self) -> ExpertLibrary:
        """The experts."""


@contextmanager
def placed_adapter(
    library: ExpertLibrary,
    shapes: Mapping[str, ExpertShape],
    tensors: Mapping[str, Tensor] | None = None,
) -> Iterator[None]:
    """Place the adapter of a router on the base model in the body of a ``with`` statement.

    Args:
        library: The experts of the base model.
        shapes: Shape of the adapter by linear.
        tensors: Its tensors; None for those of a new expert.

    Raises:
        ValueError: If the tensors do not fit the model; names one.
    """
    library.add_shapes(ADAPTER, shapes)
    try:
        if tensors is not None:
            library.load_state_dict(ADAPTER, tensors)
        yield
    finally:
        library.remove(ADAPTER)


def adapter_gates(backbone: Backbone, batch: Batch) -> Gates:
    """Return the gates that use the adapter alone for every sample of a batch."""
    rows = backbone.vision_rows(batch.host.inputs, batch.host.image_counts)
    return Gates([ADAPTER], torch.ones(len(batch), 1), rows, batch.inputs.get("attention_mask"))


def name_experts(
    model: HoldsModel, router: GenerativeRouter, batches: Iterable[Batch], experts: Sequence[str]
) -> Iterator[tuple[Batch, list[str]]]:
    """Yield each batch with the expert that the model names for each of its samples.

    Generation is greedy, in full precision, and may only follow the names.

    Args:
        model: The base model; the adapter is on it until the last batch.
        router: Knows adapter and names.
        batches: Prompts that ask for the task, see `GenerativeRouter.asked`.
        experts: Names of the experts to choose among.

    Raises:
        ValueError: If the adapter does not fit the model; names a tensor.
    """
    tree, backbone = router.tree(experts), model.backbone
    device = next(backbone.parameters()).device
    settings = backbone.generation
    backbone.set_generation({})  # a penalty on repeated tokens would count names in the prompt
    try:
        with placed_adapter(model.library, router.shapes(), router.adapter), eval_mode(backbone):
            for batch in batches:
                tokens = _generated(model, batch.to(device), tree)
                yield batch, [tree.name(row) for row in tokens[: batch.real].tolist()]
    finally:
        backbone.set_generation(settings)


def _generated(model: HoldsModel, batch: Batch, tree: NameTree) -> Tensor:
    """Return the tokens that tell the names of a batch apart, ``(B, depth)``."""
    start = batch.inputs["input_ids"].shape[1]

    def allowed(_: int, tokens: Tensor) -> list[int]:
        return tree.allowed(tokens[start:].tolist())

    gates, kind = adapter_gates(model.backbone, batch), batch.image_counts.device.type
    with model.library.context.use(gates), torch.autocast(kind, enabled=False):
        return model.backbone.generate_tokens(
            batch.inputs, tree.depth, prefix_allowed_tokens_fn=allowed
        )
