"""The base models that the recipe makes: world, shape and settings of each."""

from __future__ import annotations

from dataclasses import dataclass

from recipes.tiny.architecture import ModelShape
from recipes.tiny.worlds import SMALL_WORLD, WIDE_WORLD, World


@dataclass(frozen=True)
class PretrainingSettings:
    """Settings that, with world and shape, determine the outcome of a run.

    Args:
        seed: Seed of weights and scenes.
        eye_steps: Steps of stage "eye".
        eye_batch: Images of a step of stage "eye".
        eye_lr: Peak learning rate of stage "eye".
        all_steps: Steps of stage "all".
        all_batch: Images of a step of stage "all".
        all_lr: Peak learning rate of stage "all".
        questions: Most questions about an image.
    """

    seed: int = 0
    eye_steps: int = 950
    eye_batch: int = 96
    eye_lr: float = 4e-3
    all_steps: int = 1550
    all_batch: int = 24
    all_lr: float = 3e-3
    questions: int = 10


@dataclass(frozen=True)
class Base:
    """A base model to make.

    Args:
        name: Name in `BASES`.
        world: What it is pretrained on.
        shape: Widths and depths.
        settings: Settings of the pretraining.
    """

    name: str
    world: World
    shape: ModelShape
    settings: PretrainingSettings


BASES = {
    "tiny": Base("tiny", SMALL_WORLD, ModelShape(), PretrainingSettings()),
    "deep": Base(
        "deep",
        WIDE_WORLD,
        ModelShape(
            vision_blocks=12,
            vision_width=112,
            vision_heads=4,
            language_blocks=12,
            language_width=128,
            language_heads=4,
            language_hidden=320,
        ),
        PretrainingSettings(
            eye_steps=1500, eye_lr=3e-3, all_steps=2500, all_lr=2.5e-3, questions=12
        ),
    ),
}
"""The tiny model that ships with the library, and a deeper one for studies of allocation."""
