"""A base model and a router that choose experts which another server applies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dmole.data.decoding import AS_STORED, ImageOptions
from dmole.inference.answering import AnsweringModel
from dmole.inference.decoding import OnText
from dmole.inference.requests import Answer, Request


class RouteOnly(AnsweringModel):
    """Chooses the experts of requests by their names alone; it has none and cannot answer.

    The embeddings that a router reads are those of the bare base model, so its choice is that of
    the whole model.

    Args:
        names: Names of the experts, in the order of the run.
        images: How images become RGB pictures.
        arguments: As for :class:`~dmole.inference.answering.AnsweringModel`.
    """

    def __init__(
        self, names: Sequence[str], *, images: ImageOptions = AS_STORED, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self.images = images
        self._names = tuple(names)

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of the experts, oldest first."""
        return self._names

    def answer(self, requests: Sequence[Request], on_text: OnText | None = None) -> list[Answer]:
        """Refuse to answer.

        Raises:
            ValueError: Always.
        """
        raise ValueError("this model chooses experts and has none: it cannot answer")

    def to(self, device: str | torch.device) -> RouteOnly:
        """Move the base model to a device, and return this object."""
        self.backbone.to(device)
        return self
