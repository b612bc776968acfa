"""Questions and answers in other styles, by rule."""

from __future__ import annotations

import doctest
import random

import pytest

from dmole.data import Sample, Turn, answer_styles
from dmole.data.answer_styles import STYLES, RewordedSamples, reword, style_of
from dmole.data.sampler import approximate_length
from dmole.data.sequences import SampleList

COLORS = ("red", "Blue.", "green", "blue", "black")


def samples(answers: tuple[str, ...] = COLORS, question: str = "which color ?") -> SampleList:
    asked = Turn("user", f"<image>\n{question}")
    return SampleList(
        [
            Sample(f"s{i}", (Turn("user", "hi"), Turn("assistant", "hello"), asked, given))
            for i, given in enumerate(Turn("assistant", answer) for answer in answers)
        ]
    )


def reworded(style: str, seed: int = 0, **options: tuple[str, ...]) -> list[Sample]:
    whole = samples(**options)
    return list(RewordedSamples(whole, dict.fromkeys(range(len(whole)), style), seed))


def test_a_yes_no_question_is_true_half_of_the_time() -> None:
    found = [
        (sample.turns[-2].text, sample.turns[-1].text, answer.removesuffix("."))
        for seed in range(40)
        for sample, answer in zip(reworded("yes_no", seed), COLORS, strict=True)
    ]
    for question, answer, right in found:
        shown = question.removeprefix("<image>\nwhich color ?\nIs the answer ").partition("?")[0]
        assert question.endswith("? Answer yes or no.")
        assert answer == ("yes" if shown.casefold() == right.casefold() else "no")
    assert 60 < sum(answer == "yes" for _, answer, _ in found) < 140  # of 200


def test_a_choice_has_the_answer_once_and_the_letter_that_names_it() -> None:
    letters = set()
    for seed in range(10):
        for sample, answer in zip(reworded("choice", seed), COLORS, strict=True):
            _, _, *lines, last = sample.turns[-2].text.split("\n")
            assert last == "Answer with the letter of the right choice."
            choices = dict(line.split(". ") for line in lines)
            assert [*choices] == [*"ABCD"]  # red, blue, green, black; blue is not shown twice
            assert len({choice.casefold() for choice in choices.values()}) == 4
            assert choices[sample.turns[-1].text] == answer.removesuffix(".")
            letters.add(sample.turns[-1].text)
    assert letters == {*"ABCD"}


def test_only_the_last_question_is_reworded_and_all_else_is_kept() -> None:
    whole = samples()
    for before, after in zip(whole, reworded("sentence"), strict=True):
        answer = before.turns[-1].text.removesuffix(".")
        assert after.turns[-1] == Turn("assistant", f"The answer is {answer}.")
        assert after.turns[-2].text == f"{before.turns[-2].text}\nAnswer in a sentence."
        assert (after.id, after.turns[:2], after.images) == (before.id, before.turns[:2], ())


@pytest.mark.parametrize("style", STYLES)
def test_a_sample_does_not_depend_on_what_was_read_before(style: str) -> None:
    whole = samples()
    one, other = (RewordedSamples(whole, {1: style, 3: style}, 7) for _ in range(2))
    assert [other.at(3), other.at(1)] == [one.at(1), one.at(3)][::-1]
    assert [one.at(i) for i in (0, 2, 4)] == [whole.at(i) for i in (0, 2, 4)]
    assert one.lengths().tolist() == [approximate_length(sample) for sample in one]


@pytest.mark.parametrize("same", ["red .", "Red", " red.", "red \n"])
@pytest.mark.parametrize("style", ["yes_no", "choice"])
def test_an_answer_in_another_writing_is_not_shown_as_a_wrong_one(style: str, same: str) -> None:
    for sample in reworded(style, answers=("red", same)):
        assert sample.turns[-1].text.casefold() == "the answer is red."
    one, other = "dark  blue", "dark blue ."
    assert reworded(style, answers=(one, other))[0].turns[-1].text == f"The answer is {one}."


def test_what_is_in_a_style_or_has_no_wrong_answer_gets_the_next_style() -> None:
    yes_no = reworded("yes_no", answers=("yes", "no", "no"))
    assert all(sample.turns[-1].text in "AB" for sample in yes_no)
    letters = reworded("choice", answers=("A", "C.", "B"))
    assert all(sample.turns[-1].text.startswith("The answer is") for sample in letters)
    assert reworded("choice", answers=("one", "one"))[0].turns[-1].text == "The answer is one."
    assert reword("q", "a", "yes_no", [], random.Random(0)) is None


def test_the_style_of_an_answer() -> None:
    found = [style_of(text) for text in ("yes", "No.", "B", "(C)", "a", "7", "yes it is")]
    assert found == ["yes_no", "yes_no", "choice", "choice", None, None, None]


def test_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(answer_styles)
    assert (result.failed, result.attempted) == (0, 3)
