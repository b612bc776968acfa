"""Questions about scenes of the wide world, each in two wordings."""

from __future__ import annotations

import random

from dmole.demo.world.questions import (
    COUNT_WORDS,
    WORDINGS,
    Asker,
    Question,
    ask_shapes,
    ask_text,
    refer_to,
)
from dmole.demo.world.wide import SMALL, WIDE_SHAPES
from dmole.demo.world.words import SPELLED_DIGITS
from dmole.demo.world.world import ALL_COLOR_NAMES, CELL, Scene, Thing

WIDE_WORDINGS = WORDINGS | {
    "read_pair": ("what is written ?", "read the text"),
    "read_word": ("say the digit as a word", "which word is the digit ?"),
    "fill": ("is the {} solid or hollow ?", "what fill has the {} ?"),
    "size": ("is the {} small or large ?", "what size is the {} ?"),
    "count_color": ("how many {} shapes are there ?", "count the {} shapes"),
    "largest": ("which shape is the largest ?", "name the largest shape"),
    "only_shape": ("what shape is shown ?", "name the shape"),
    "only_color": ("what color is shown ?", "name the color"),
}
"""The kinds of questions, with two wordings each."""


def ask_wide(rng: random.Random, scene: Scene) -> list[Question]:
    """Return all questions about a scene, each in one of its two wordings."""
    ask = Asker(rng, WIDE_WORDINGS, ALL_COLOR_NAMES, WIDE_SHAPES)
    if scene.text_kind is not None:
        questions = ask_text(ask, scene)
        if scene.text_kind == "digit":
            questions.append(ask("read_word", SPELLED_DIGITS[int(scene.text)]))
        return questions
    return [
        *ask_shapes(ask, scene),
        *(question for thing in scene.things for question in _ask_look(ask, scene, thing)),
        *_ask_scene(ask, scene),
    ]


def _ask_look(ask: Asker, scene: Scene, thing: Thing) -> list[Question]:
    """Return the questions about fill and size of a thing; small things are always solid."""
    size = "small" if thing.width * CELL <= SMALL else "large"
    phrase = refer_to(ask.rng, scene, thing)
    questions = [ask("size", size, phrase, things=(thing,))]
    if size == "large":
        questions.append(ask("fill", thing.fill, phrase, things=(thing,)))
    return questions


def _ask_scene(ask: Asker, scene: Scene) -> list[Question]:
    colors = [thing.color for thing in scene.things]
    color = ask.rng.choice(colors if ask.rng.random() < 0.75 else ask.colors)
    questions = [ask("count_color", COUNT_WORDS[colors.count(color)], ALL_COLOR_NAMES[color])]
    first, *others = sorted(scene.things, key=lambda thing: -thing.width)
    if not others:
        questions.append(ask("only_shape", first.class_name, things=(first,)))
        questions.append(ask("only_color", first.color_name, things=(first,)))
    elif first.width > others[0].width:
        questions.append(ask("largest", f"a {first.name}", things=(first,)))
    return questions
