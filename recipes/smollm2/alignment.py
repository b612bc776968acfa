"""Training of the projector: first on word embeddings, then on answers of the language model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dmole.data.batch import Batch
from dmole.data.collate import Collator
from dmole.data.labels import IGNORED
from dmole.data.sample import IMAGE_PLACEHOLDER, ArrayImage, Sample, Turn
from dmole.demo.world.questions import Question, ask_all
from dmole.demo.world.scenes import dense_labels, random_scene
from dmole.demo.world.world import CLASSES, COLOR_NAMES, Scene
from recipes.smollm2.assembly import TOKENS
from recipes.tiny.architecture import to_pixel_values

GROUND_WORD, GROUND_WEIGHT = "background", 0.15
EXCLUDED_KINDS = ("box", "refer", "text_box")
"""Kinds of questions that need location tokens, which SmolLM2 does not have."""
CLIP_NORM = 1.0


@dataclass(frozen=True)
class AlignmentSettings:
    """Settings that determine the outcome of the training."""

    seed: int = 0
    word_steps: int = 240
    word_batch: int = 64
    word_lr: float = 2e-3
    chat_steps: int = 36
    chat_batch: int = 4
    chat_lr: float = 1e-3
    turns: int = 5


@dataclass(frozen=True)
class Phase:
    """A phase of a training.

    Args:
        name: Its name.
        steps: Its steps.
        lr: Its largest learning rate.
        loss: Returns the loss of a step, given the source of its samples.
    """

    name: str
    steps: int
    lr: float
    loss: Callable[[random.Random], Tensor]


def train(
    projector: nn.Module, phases: Sequence[Phase], seed: str
) -> Iterator[tuple[str, int, float]]:
    """Train a projector phase by phase; yield phase, step and loss after each step.

    AdamW, with ten steps of warm-up and a linear decay in each phase.

    Args:
        projector: The module to train.
        phases: The phases.
        seed: Seed of the samples.
    """
    for phase in phases:
        optimizer = torch.optim.AdamW(projector.parameters(), phase.lr, weight_decay=0.0)
        for step in range(phase.steps):
            loss = phase.loss(random.Random(f"{seed}-{phase.name}-{step}"))
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(projector.parameters(), CLIP_NORM)
            for group in optimizer.param_groups:
                group["lr"] = phase.lr * min(1.0, (step + 1) / 10) * (1 - step / phase.steps)
            optimizer.step()
            yield phase.name, step + 1, loss.item()


class WordTargets:
    """Word embeddings as targets of image tokens: the color and class that a token shows.

    Args:
        words: Word embeddings of the language model, ``(vocabulary, width)``.
        tokenizer: Its tokenizer; a name of several tokens is represented by their mean.
    """

    def __init__(self, words: Tensor, tokenizer: Any) -> None:
        def embed(name: str) -> Tensor:
            ids = tokenizer(f" {name}", add_special_tokens=False)["input_ids"]
            return words[ids].mean(0)

        self.colors = torch.stack([embed(name) for name in COLOR_NAMES])
        self.classes = torch.stack([embed(name) for name in CLASSES])
        self.ground = embed(GROUND_WORD)
        self.scale = torch.cat([self.colors, self.classes]).square().mean()

    def loss(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Return the mean squared distance to the targets, 1 if all image tokens are zero.

        Args:
            tokens: Projected patches, ``(images, tokens, width)``.
            labels: Labels of `dense_labels`, ``(images, 6, tokens)``.
        """
        color, label = labels[:, 0], labels[:, 1]
        shown = color > 0
        # label 0 is the ground; `torch.where` below replaces the target of its clamped index
        words = (self.colors[(color - 1).clamp(0)] + self.classes[(label - 1).clamp(0)]) / 2
        targets = torch.where(shown[..., None], words, self.ground)
        weights = torch.where(shown, 1.0, GROUND_WEIGHT)
        each = functional.mse_loss(tokens, targets, reduction="none").mean(-1)
        return (each * weights).sum() / weights.sum() / self.scale


def conversation(rng: random.Random, scene: Scene, turns: int, name: str) -> Sample:
    """Return a dialog about a scene: up to `turns` questions of different kinds with answers."""
    questions = [
        question for question in ask_all(rng, scene) if question.kind not in EXCLUDED_KINDS
    ]
    rng.shuffle(questions)
    by_kind: dict[str, Question] = {}
    for question in questions:
        by_kind.setdefault(question.kind, question)
    dialog: list[Turn] = []
    for question in list(by_kind.values())[:turns]:
        image = "" if dialog else f"{IMAGE_PLACEHOLDER}\n"
        dialog += [Turn("user", image + question.text), Turn("assistant", question.answer)]
    return Sample(name, tuple(dialog), (ArrayImage(scene.pixels),))


def chat_loss(model: Any, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of the answers; only their tokens get logits."""
    assert batch.labels is not None
    hidden = model.model(**batch.inputs, use_cache=False).last_hidden_state
    targets = batch.labels[:, 1:]
    answered = targets != IGNORED
    loss: Tensor = functional.cross_entropy(
        model.lm_head(hidden[:, :-1][answered]), targets[answered]
    )
    return loss


class Alignment:
    """Trains only the projector of an assembled model.

    Args:
        model: The model; its other parts stay frozen.
        processor: Its processor.
        settings: Settings that determine the outcome.
    """

    def __init__(self, model: Any, processor: Any, settings: AlignmentSettings) -> None:
        self.model, self.settings = model, settings
        self.projector = model.model.multi_modal_projector.requires_grad_(True)
        self.targets = WordTargets(model.get_input_embeddings().weight, processor.tokenizer)
        self.collate = Collator(processor)

    def run(self) -> Iterator[tuple[str, int, float]]:
        """Train; yield stage, step and loss after each step."""
        settings = self.settings
        stages = (
            Phase("words", settings.word_steps, settings.word_lr, self._word_loss),
            Phase("chat", settings.chat_steps, settings.chat_lr, self._chat_loss),
        )
        yield from train(self.projector, stages, f"smollm2-{settings.seed}")
        self.model.requires_grad_(False)

    def _word_loss(self, rng: random.Random) -> Tensor:
        scenes = [random_scene(rng) for _ in range(self.settings.word_batch)]
        pixels = to_pixel_values([scene.pixels for scene in scenes])
        tokens = self.model.get_image_features(pixels).pooler_output
        return self.targets.loss(tokens, _labels(scenes))

    def _chat_loss(self, rng: random.Random) -> Tensor:
        chats = [
            conversation(rng, random_scene(rng), self.settings.turns, f"chat {number}")
            for number in range(self.settings.chat_batch)
        ]
        return chat_loss(self.model, self.collate([(c, "chat") for c in chats], generation=False))


def _labels(scenes: Sequence[Scene]) -> Tensor:
    side = int(TOKENS**0.5)
    return torch.from_numpy(np.stack([dense_labels(scene, side) for scene in scenes]))
