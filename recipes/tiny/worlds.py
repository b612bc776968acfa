"""The worlds that base models are pretrained on: scenes, questions and words."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dmole.demo.world.questions import WORDINGS, Question, ask_all
from dmole.demo.world.scenes import random_scene
from dmole.demo.world.wide import wide_scene
from dmole.demo.world.wide_questions import WIDE_WORDINGS, ask_wide
from dmole.demo.world.words import NEW_WORDS
from dmole.demo.world.world import (
    ALL_CLASSES,
    ALL_COLOR_NAMES,
    CLASSES,
    COLOR_NAMES,
    DIGITS,
    LETTERS,
    SHAPES,
    Scene,
)

_EXTRA = """
zero one two three four five six seven eight nine ten eleven twelve yes no a an the is are there
of in on at from and or to with left right above below top middle bottom center what where which
how many color shape shapes text letter digit number word locate image picture small large big
tiny size same different not none object objects describe caption read written see does do has
scarlet emerald azure gold violet amber ebony rose ivory teal brown gray cyan disc block wedge
spark plus box ring frame outline hollow filled solid striped stripes dotted noise rough dark
bright light ground count total pair single trio dozen north south east west up down corner side
area pixel point reply say tell name give code class kind type it this that you look find show
paint drawn sign spell short long first second third last next near far inside edge line circle
square triangle star cross rectangle red green blue yellow purple orange black pink white
contain present task answer question use as lie part list all by only
"""
EXTRA_WORDS = tuple(_EXTRA.split())
"""Words that the scenes do not use but a later task may; each is one token."""


@dataclass(frozen=True)
class World:
    """What a base model is pretrained on.

    Args:
        scene: Draws a scene.
        ask: Returns all questions about a scene.
        wordings: The kinds of questions with their two wordings.
        colors: Names of the colors; the index is the color of a thing.
        classes: Names of the classes; the index is the label of a thing.
        extra_words: Words for later tasks, each of which is one token.
    """

    scene: Callable[[random.Random], Scene]
    ask: Callable[[random.Random, Scene], list[Question]]
    wordings: Mapping[str, tuple[str, str]]
    colors: tuple[str, ...]
    classes: tuple[str, ...]
    extra_words: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All names of colors and classes in the order of the tokenizer's corpus."""
        more = tuple(name for name in self.classes if name not in CLASSES)
        return self.colors + SHAPES + DIGITS + LETTERS + more


SMALL_WORLD = World(random_scene, ask_all, WORDINGS, COLOR_NAMES, CLASSES, EXTRA_WORDS)
WIDE_WORLD = World(
    wide_scene,
    ask_wide,
    WIDE_WORDINGS,
    ALL_COLOR_NAMES,
    ALL_CLASSES,
    EXTRA_WORDS + NEW_WORDS,
)
