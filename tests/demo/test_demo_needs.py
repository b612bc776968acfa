"""Tasks that differ in what they need."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from dmole.demo.world import synthetic_samples
from dmole.demo.world.need_pictures import SIGNS, dusk, sign_mask, veil
from dmole.demo.world.needs import ALL_PAINTS, NEED_GENERATORS, NEED_TASKS
from dmole.demo.world.wide import wide_scene
from dmole.demo.world.wide_questions import WIDE_WORDINGS, ask_wide
from dmole.demo.world.world import ALL_COLORS

SAMPLES = 800


@pytest.fixture(scope="module")
def learned() -> set[str]:
    """All words of the questions and answers of the pretraining."""
    rng = random.Random(0)
    asked = [question for _ in range(1000) for question in ask_wide(rng, wide_scene(rng))]
    return {word for question in asked for word in f"{question.text} {question.answer}".split()}


@pytest.mark.parametrize("name", NEED_TASKS)
def test_a_task_has_its_number_of_answers_and_its_chance(name: str) -> None:
    samples = synthetic_samples(f"synthetic://need_{name}/test?size={SAMPLES}")
    answers = Counter(sample.references[0] for sample in samples)
    task = NEED_TASKS[name]
    assert len(answers) <= task.answers
    if task.answers < 100:
        assert len(answers) == task.answers
    largest = 100 * max(answers.values()) / SAMPLES
    assert task.chance - 2 <= largest <= task.chance + 4


@pytest.mark.parametrize("name", NEED_TASKS)
def test_only_tasks_that_need_language_have_words_that_the_base_has_not_learned(
    name: str, learned: set[str]
) -> None:
    samples = synthetic_samples(f"synthetic://need_{name}/test?size=100")
    wordings = {text.split("{}")[0] for pair in WIDE_WORDINGS.values() for text in pair}
    known = all(
        any(sample.prompt.startswith(wording) for wording in wordings)
        and {*sample.references[0].split()} <= learned
        for sample in samples
    )
    # the script has known words for unknown signs
    assert known == (NEED_TASKS[name].need in ("none", "vision") or name == "language_script")


@pytest.mark.parametrize("name", [n for n, t in NEED_TASKS.items() if "paint words" in t.shares])
def test_every_answer_of_a_task_with_paint_words_has_one(name: str, learned: set[str]) -> None:
    for sample in synthetic_samples(f"synthetic://need_{name}/test?size=50"):
        words = {*sample.references[0].split()}
        assert words - learned
        assert words - learned <= {*ALL_PAINTS.values()}
        assert not words & ALL_COLORS.keys()


def test_every_color_has_a_paint_word_of_its_own() -> None:
    assert ALL_PAINTS.keys() == ALL_COLORS.keys()
    assert len({*ALL_PAINTS.values()} | ALL_COLORS.keys()) == 2 * len(ALL_COLORS)


def test_tasks_that_share_words_or_pictures_name_what_they_share() -> None:
    sharing = Counter(what for task in NEED_TASKS.values() for what in task.shares)
    assert sharing == {"paint words": 3, "veil": 2, "dusk": 2}
    assert [*NEED_GENERATORS] == [f"need_{name}" for name in NEED_TASKS]


def test_a_veil_adds_one_pattern_to_every_patch() -> None:
    gray = np.full((64, 64, 3), 128, np.uint8)
    patches = veil(gray).reshape(8, 8, 8, 8, 3).transpose(0, 2, 1, 3, 4).reshape(64, -1)
    assert (patches == patches[0]).all()
    assert {*np.unique(patches)} == {68, 188}


def test_dusk_keeps_a_quarter_of_the_contrast() -> None:
    pixels = wide_scene(random.Random(0)).pixels
    contrast, dim = np.ptp(pixels.astype(int), axis=(0, 1)), np.ptp(dusk(pixels), axis=(0, 1))
    assert (np.abs(dim - contrast / 4) <= 1).all()


def test_the_signs_of_the_script_differ() -> None:
    masks = [sign_mask(sign, 24) for sign in range(SIGNS)]
    for index, mask in enumerate(masks):
        assert all(np.abs(mask - other).sum() > 50 for other in masks[:index])
