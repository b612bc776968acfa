from __future__ import annotations

import pytest

from dmole.metrics.readers import option_letter, option_letters, read_number, yes_or_no


@pytest.mark.parametrize("letter", "ABCDE")
@pytest.mark.parametrize(
    "form",
    [
        "{}",
        " {}.",
        "({})",
        "[{}]",
        "**{}**",
        "\\boxed{{{}}}",
        "<answer>{}</answer>",
        "{}: a cat",
        "Answer: {}",
        "Answer: {} dark one",
        "{} because it fits",
        "The answer is {} because of the color",
        "The answer is {} red dog",
        "option {} is correct",
        "Answer {} is right",
        "I choose {}, since it fits",
        "_{}_",
        "\u7b54\u6848\u662f{}\u3002",
        "It is {}\nThanks",
    ],
)
def test_every_letter_is_read_in_every_form(form: str, letter: str) -> None:
    text = form.format(letter)
    assert option_letter(text, "ABCDE") == option_letter(text, "ABCDE", last=True) == letter


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("a red dog", []),
        ("A red dog. A blue cat", []),
        ("IT IS A DOG", []),
        ("Because it is green", []),
        ("e.g. a dog", []),
        ("the U.S.A", []),
        ("caf\u00e9a \u00e0 b\u00e9", []),
        ("the dog's T-shirt", []),
        ("I think so", []),
        ("not B", []),
        ("(b) or d", ["B", "D"]),
        ("Not A. It is C", ["C"]),
        ("A and B are wrong, so it is C", ["C"]),
        ("A, B and C are incorrect. D", ["D"]),
        ("neither A nor B but C", ["C"]),
        ("It can't be A or B; it is D", ["D"]),
        ("The answer isn't B, it's C", ["C"]),
        ("A is not wrong", ["A"]),
        ("C instead of A", ["C"]),
    ],
)
def test_words_and_letters_that_are_ruled_out_are_no_options(text: str, letters: list[str]) -> None:
    assert option_letters(text, "ABCDEFGHI") == letters


def test_letters_beyond_the_options_are_passed_over() -> None:
    assert option_letter("C, or rather B", "AB", last=False) == "B"
    assert option_letter("I is the best option", "ABCDEFGHI") == "I"


def test_a_marked_or_enclosed_letter_precedes_the_last_one() -> None:
    assert option_letter("B. A is larger", "ABCD", last=True) == "B"
    assert option_letter("It is (B), as plan C failed", "ABCD", last=True) == "B"
    assert option_letter("A, no, B", "ABCD", last=True) == "B"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", "yes"),
        (" NO.", "no"),
        ("I see: yes", "yes"),
        ("It is not.", "no"),
        ("There isn\u2019t. Yes?", "no"),
        ("None", "no"),
        ("", None),
        ("a dog", None),
        ("norway, nothing, yesterday", None),
    ],
)
def test_yes_and_no_are_whole_words(text: str, answer: str | None) -> None:
    assert yes_or_no(text) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,040", 1040.0),
        ("1 040.5", 1040.5),
        ("10,40,000", 1040000.0),
        ("$-3", None),
        ("-$3", -3.0),
        ("\u22125", -5.0),
        ("50 %", 50.0),
        ("1.5e3", 1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("Two.", 2.0),
        ("", None),
        ("%", None),
        ("nan", None),
        ("inf", None),
        ("1e999", None),
        ("9" * 400, None),
        ("1_000", None),
        ("1,04", None),
        ("\u0663", None),
        ("True", None),
        ("5 kg", None),
        ("none", None),
    ],
)
def test_a_number_is_the_whole_answer_and_finite(text: str, number: float | None) -> None:
    assert read_number(text) == number
