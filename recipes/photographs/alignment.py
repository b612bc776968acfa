"""Training of the projector: first on the words for what a token shows, then on captions."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dmole.data.collate import Collator
from dmole.data.sample import IMAGE_PLACEHOLDER, ArrayImage, Sample, Turn
from dmole.demo.stamps import Photo, Picture, describe
from dmole.models.efficientnet_lite import CELL
from recipes.smollm2.alignment import GROUND_WEIGHT, GROUND_WORD, Phase, chat_loss, train


@dataclass(frozen=True)
class AlignmentSettings:
    """Settings that determine the outcome of the training."""

    seed: int = 0
    word_steps: int = 300
    word_batch: int = 32
    word_lr: float = 2e-3
    caption_steps: int = 200
    caption_batch: int = 8
    caption_lr: float = 1e-3


class Alignment:
    """Trains only the projector of an assembled model.

    Args:
        model: The model; its other parts stay frozen.
        processor: Its processor.
        photos: Photographs of the pictures.
        settings: Settings that determine the outcome.
    """

    def __init__(
        self, model: Any, processor: Any, photos: Sequence[Photo], settings: AlignmentSettings
    ) -> None:
        self.model, self.photos, self.settings = model, photos, settings
        self.processor, self.collate = processor, Collator(processor)
        self.projector = model.model.multi_modal_projector.requires_grad_(True)
        words = model.get_input_embeddings().weight.detach()
        names = (GROUND_WORD, *(photo.name for photo in photos))
        self.words = {name: _embedding(words, processor.tokenizer, name) for name in names}
        self.scale = torch.stack([*self.words.values()]).square().mean()

    def run(self) -> Iterator[tuple[str, int, float]]:
        """Train; yield phase, step and loss after each step."""
        settings = self.settings
        phases = (
            Phase("words", settings.word_steps, settings.word_lr, self._word_loss),
            Phase("captions", settings.caption_steps, settings.caption_lr, self._caption_loss),
        )
        yield from train(self.projector, phases, f"photographs-{settings.seed}")
        self.model.requires_grad_(False)

    def _word_loss(self, rng: random.Random) -> Tensor:
        """Return the squared distance of tokens to words, 1 if all tokens are zero."""
        pictures = [describe(rng, self.photos)[0] for _ in range(self.settings.word_batch)]
        images = [picture.draw() for picture in pictures]
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        tokens = torch.stack(
            [*self.model.get_image_features(pixels).pooler_output]
        )  # (B, N, width)
        side = int(tokens.shape[1] ** 0.5)
        names = [name for picture in pictures for name in shown(picture, side)]
        targets = torch.stack([self.words[name] for name in names]).view_as(tokens)
        ground = torch.tensor([name == GROUND_WORD for name in names]).view(tokens.shape[:2])
        weights = torch.where(ground, GROUND_WEIGHT, 1.0)  # (B, N)
        each = functional.mse_loss(tokens, targets, reduction="none").mean(-1)
        return (each * weights).sum() / weights.sum() / self.scale

    def _caption_loss(self, rng: random.Random) -> Tensor:
        chats = [caption(rng, self.photos) for _ in range(self.settings.caption_batch)]
        items = [(chat, "caption") for chat in chats]
        return chat_loss(self.model, self.collate(items, generation=False))


def shown(picture: Picture, side: int) -> list[str]:
    """Return the name of what each cell of a picture shows at its center, row by row.

    Args:
        picture: The picture.
        side: Number of cells of a row.
    """
    names = []
    for row in range(side):
        for column in range(side):
            x, y = ((index + 0.5) * CELL for index in (column, row))
            names.append(
                next(
                    (
                        one.photo.name
                        for one in picture.placed
                        if one.left <= x < one.left + one.side and one.top <= y < one.top + one.side
                    ),
                    GROUND_WORD,
                )
            )
    return names


def caption(rng: random.Random, photos: Sequence[Photo]) -> Sample:
    """Return a picture with its caption as a conversation."""
    picture, question, answer = describe(rng, photos)
    turns = (Turn("user", f"{IMAGE_PLACEHOLDER}\n{question}"), Turn("assistant", answer))
    return Sample("caption", turns, (ArrayImage(np.asarray(picture.draw())),))


def _embedding(words: Tensor, tokenizer: Any, name: str) -> Tensor:
    """Return the mean embedding of the tokens of a name, ``(width,)``."""
    ids = tokenizer(f" {name}", add_special_tokens=False)["input_ids"]
    return words[ids].mean(0)
