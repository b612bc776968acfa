"""Tiny processors and models of twelve families, built on the spot, nothing to download."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from packaging.version import Version

from dmole.data.batch import Batch
from dmole.data.collate import Collator
from dmole.data.sample import ArrayImage, Sample, Turn
from dmole.models import Backbone
from families.models import FAMILIES, WIDTH, make_model
from families.processors import make_processor

__all__ = [
    "ANSWERS",
    "FAMILIES",
    "MLLAMA_IMAGES",
    "MLLAMA_TAKES_TEXT",
    "MODEL_FAMILIES",
    "QUESTIONS",
    "WIDTH",
    "all_linears",
    "make_backbone",
    "make_batch",
    "make_image",
    "make_model",
    "make_processor",
    "make_samples",
    "randomize",
]

MODEL_FAMILIES = ["llava", "llava_next", "idefics3"]
"""One vision row an image; one a tile; one a tile with padding. All see images at random init."""

MLLAMA_TAKES_TEXT = Version(transformers.__version__) >= Version("5.23")
"""Whether its processor takes samples without an image in a batch with images."""

MLLAMA_IMAGES = (1, 0, 1) if MLLAMA_TAKES_TEXT else (1, 1, 1)
"""Images of three samples of a batch: all samples with images need equally many."""


def make_backbone(family: str, vision_feature_layer: int | None = None) -> Backbone:
    processor = make_processor(family)
    return Backbone(make_model(family, processor, vision_feature_layer), processor)


def make_image(seed: int, height: int = 20, width: int = 30) -> ArrayImage:
    rng = np.random.default_rng(seed)
    return ArrayImage(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


QUESTIONS = ["what color is it?", "is there a circle in the picture?", "why?", "how many shapes?"]
ANSWERS = ["red", "yes, a blue one", "the fox", "two"]


def make_samples(images: tuple[int, ...] = (1, 0, 1), answers: bool = True) -> list[Sample]:
    """Build samples with the given numbers of images, of different shapes and lengths."""
    samples = []
    for i, count in enumerate(images):
        question = "<image>\n" * count + QUESTIONS[i % 4]
        turns = [Turn("user", question)]
        if answers:
            turns.append(Turn("assistant", ANSWERS[i % 4]))
        pictures = tuple(make_image(10 * i + j, 20 + 8 * i, 30) for j in range(count))
        samples.append(Sample(f"s{i}", tuple(turns), pictures, ("red",)))
    return samples


def make_batch(backbone: Backbone, samples: list[Sample], task: str = "colors") -> Batch:
    """Collate; samples without an answer give a batch to generate from."""
    generation = samples[0].turns[-1].role == "user"
    items = [(sample, task) for sample in samples]
    return Collator(backbone.processor)(items, generation=generation)


def all_linears(backbone: Backbone) -> list[str]:
    return [path for block in backbone.blocks for path in block.linears]


def randomize(library: Any, name: str, scale: float = 0.3) -> None:
    """Give an expert weights that change the output, the same for the same name."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    for _, parameter in library.parameters(name):
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
