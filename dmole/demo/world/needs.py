"""Tasks for the deep base model that differ in what has to be learned: vision, language or both.

*Vision* tasks have the questions and answers of the pretraining, about pictures that the vision
encoder was never shown. New signs alone would not do: the encoder tells them apart, and the
language model learns their names. Here the picture as a whole is changed, by a transformation
that is simple at the patch embeddings and scrambled after the encoder. The answers are many, so a
language model would have to learn each of them anew.

*Language* tasks have pictures that the encoder sees as well as those of the pretraining, and new
words, a new format, or signs to name. *Both* has the pictures of a vision task and the words of a
language task. *None* is a question of the pretraining.

Chance is the score of the best constant answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dmole.demo.world.need_pictures import SIGNS, dusk, script, veil
from dmole.demo.world.questions import WORDINGS, Question, alone_in_shape, refer_to
from dmole.demo.world.wide import wide_shapes, wide_text
from dmole.demo.world.wide_questions import ask_wide
from dmole.demo.world.words import MORE_PAINTS, PAINTS, Example
from dmole.demo.world.world import Scene, Thing

ALL_PAINTS = PAINTS | MORE_PAINTS
Need = Literal["none", "vision", "language", "both"]


def none_color(rng: random.Random) -> Example:
    """The color of a shape: a question of the pretraining."""
    scene, thing = _scene_with_unique_shape(rng)
    wording = rng.choice(WORDINGS["color"])
    return Example(scene.pixels, wording.format(thing.class_name), (thing.color_name,))


def language_paint(rng: random.Random) -> Example:
    """New words for the colors of shapes."""
    scene, thing = _scene_with_unique_shape(rng)
    question = f"name the paint on the {thing.class_name}"
    return Example(scene.pixels, question, (ALL_PAINTS[thing.color_name],))


def language_ink(rng: random.Random) -> Example:
    """The words of `language_paint` for the colors of texts."""
    scene = wide_text(rng)
    answer = ALL_PAINTS[scene.things[0].color_name]
    return Example(scene.pixels, "name the ink of the text", (answer,))


def language_box(rng: random.Random) -> Example:
    """The box of a shape in a new format, row before column."""
    scene = wide_shapes(rng)
    thing = rng.choice(scene.things)
    left, top, right, bottom = thing.box
    question = f"find the {refer_to(rng, scene, thing)} from the top"
    return Example(scene.pixels, question, (f"<y{top}><x{left}><y{bottom}><x{right}>",))


def language_script(rng: random.Random) -> Example:
    """New signs for the ten digits, under the question for digits.

    The encoder tells the signs apart, so what is new is their names.
    """
    sign = rng.randrange(SIGNS)
    question = rng.choice(WORDINGS["read_digit"])
    return Example(script(rng, sign), question, (str(sign),))


def vision_veil(rng: random.Random) -> Example:
    """Captions of shapes behind stripes."""
    scene = wide_shapes(rng, rng.randint(1, 2))
    question = _question(rng, scene, "caption")
    return Example(veil(scene.pixels), question.text, (question.answer,))


def vision_veil_text(rng: random.Random) -> Example:
    """Texts behind the stripes of `vision_veil`."""
    scene = wide_text(rng)
    question = _question(rng, scene, f"read_{scene.text_kind}")
    return Example(veil(scene.pixels), question.text, (question.answer,))


def vision_dusk(rng: random.Random) -> Example:
    """Captions of shapes in dim light."""
    scene = wide_shapes(rng, rng.randint(1, 2))
    question = _question(rng, scene, "caption")
    return Example(dusk(scene.pixels), question.text, (question.answer,))


def both_dusk(rng: random.Random) -> Example:
    """Captions in the words of `language_paint`, in the light of `vision_dusk`."""
    scene = wide_shapes(rng, rng.randint(1, 2))
    things = sorted(scene.things, key=lambda thing: thing.center)
    names = [f"a {ALL_PAINTS[thing.color_name]} {thing.class_name}" for thing in things]
    question = "in paint words " + rng.choice(WORDINGS["caption"])
    return Example(dusk(scene.pixels), question, (" and ".join(names),))


def _scene_with_unique_shape(rng: random.Random) -> tuple[Scene, Thing]:
    """Return a scene of one or two shapes and a thing that its shape alone names."""
    while True:
        scene = wide_shapes(rng, rng.randint(1, 2))
        unique = [thing for thing in scene.things if alone_in_shape(scene, thing)]
        if unique:
            return scene, rng.choice(unique)


def _question(rng: random.Random, scene: Scene, kind: str) -> Question:
    """Return the question of a kind that the pretraining asks about a scene."""
    return next(question for question in ask_wide(rng, scene) if question.kind == kind)


@dataclass(frozen=True)
class NeedTask:
    """A task and what it needs.

    Args:
        generate: Its generator.
        need: What has to be learned, see above.
        answers: Number of different answers.
        chance: Score of the best constant answer, in percent.
        shares: What it shares with other tasks: pictures, words.
    """

    generate: Callable[[random.Random], Example]
    need: Need
    answers: int
    chance: float
    shares: tuple[str, ...] = ()


NEED_TASKS = {
    "none_color": NeedTask(none_color, "none", 12, 10),
    "language_paint": NeedTask(language_paint, "language", 12, 10, ("paint words",)),
    "language_ink": NeedTask(language_ink, "language", 12, 10, ("paint words",)),
    "language_box": NeedTask(language_box, "language", 630, 1),
    "language_script": NeedTask(language_script, "language", 10, 10),
    "vision_veil": NeedTask(vision_veil, "vision", 9216, 1, ("veil",)),
    "vision_veil_text": NeedTask(vision_veil_text, "vision", 812, 2, ("veil",)),
    "vision_dusk": NeedTask(vision_dusk, "vision", 9216, 1, ("dusk",)),
    "both_dusk": NeedTask(both_dusk, "both", 9216, 1, ("dusk", "paint words")),
}
"""The tasks; their address is ``synthetic://need_<name>/<split>?size=N``."""
NEED_GENERATORS = {f"need_{name}": task.generate for name, task in NEED_TASKS.items()}
"""The generators by their name in an address."""
