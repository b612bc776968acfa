"""Training samples in other styles of answer: yes or no, a choice, a sentence."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dmole.data.sample import Sample, StoredImage, Turn
from dmole.data.sampler import approximate_length
from dmole.data.sequences import Lengths, Samples
from dmole.storage.seeds import derive_seed

STYLES = ("yes_no", "choice", "sentence")
"""The styles that a question can be reworded to, in the order in which they are tried."""
CHOICES = 4
_TRIES = 10
"""Samples that are looked at for each wrong answer."""
_LETTERS = "ABCD"
_LETTER = re.compile(r"\(?[A-Z]\)?[.:]?")


def style_of(answer: str) -> str | None:
    """Return the style that an answer already has, None for a plain one.

    Example:
        >>> style_of("Yes."), style_of("B"), style_of("two red stars")
        ('yes_no', 'choice', None)
    """
    plain = answer.strip()
    if plain.casefold().rstrip(".") in ("yes", "no"):
        return "yes_no"
    return "choice" if _LETTER.fullmatch(plain) else None


def reword(
    question: str, answer: str, style: str, others: Sequence[str], rng: random.Random
) -> tuple[str, str] | None:
    r"""Return a question and its answer in another style; None if the style does not fit.

    A yes/no question has the right answer or a wrong one with equal probability, a choice up to
    three wrong answers. Both need a wrong answer. What is in a style already keeps it.

    Args:
        question: The question.
        answer: Its answer.
        style: A name of `STYLES`.
        others: Wrong answers, distinct.
        rng: Source of randomness.

    Example:
        >>> reword("which color ?", "red", "choice", ["blue"], random.Random(1))
        ('which color ?\nA. blue\nB. red\nAnswer with the letter of the right choice.', 'B')
        >>> reword("which color ?", "red", "sentence", [], random.Random(1))
        ('which color ?\nAnswer in a sentence.', 'The answer is red.')
    """
    plain = _plain(answer)
    if style == "sentence":
        return f"{question}\nAnswer in a sentence.", f"The answer is {plain}."
    if not others or style_of(answer) == style:
        return None
    if style == "yes_no":
        right = rng.random() < 0.5
        shown = plain if right else _plain(others[0])
        return f"{question}\nIs the answer {shown}? Answer yes or no.", "yes" if right else "no"
    choices = [plain, *map(_plain, others[: CHOICES - 1])]
    rng.shuffle(choices)
    lines = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=False)]
    text = "\n".join([question, *lines, "Answer with the letter of the right choice."])
    return text, _LETTERS[choices.index(plain)]


class RewordedSamples(Samples):
    """The samples of a task, some of them in another style of answer.

    The last question and answer of a sample are reworded. The result depends on the seed, the
    sample and the answers of the task alone. A style that does not fit a sample is replaced by the
    next one of `STYLES` that does.

    Args:
        whole: The training samples of the task.
        styles: Style of each sample that is reworded, by index.
        seed: Seed of wrong answers and of their order.
    """

    def __init__(self, whole: Samples, styles: Mapping[int, str], seed: int) -> None:
        self.whole = whole
        self._styles = styles
        self._seed = seed

    def __len__(self) -> int:
        return len(self.whole)

    def at(self, index: int) -> Sample:
        """Return the sample at an index that is within range."""
        sample = self.whole.at(index)
        if index not in self._styles:
            return sample
        rng = random.Random(derive_seed(self._seed, "reword", sample.id))
        question, answer = sample.turns[-2:]
        others = self._wrong_answers(answer.text, rng)
        first = STYLES.index(self._styles[index])
        for style in (*STYLES[first:], *STYLES[:first]):
            if found := reword(question.text, answer.text, style, others, rng):
                turns = (Turn(question.role, found[0]), Turn(answer.role, found[1]))
                return replace(sample, turns=(*sample.turns[:-2], *turns))
        return sample  # unreachable: a sentence always fits

    def _wrong_answers(self, answer: str, rng: random.Random) -> list[str]:
        """Return up to three distinct answers of other samples that differ from an answer."""
        found = {_key(answer): answer}
        for _ in range(_TRIES * (CHOICES - 1)):
            other = self.whole.at(rng.randrange(len(self.whole))).turns[-1].text
            found.setdefault(_key(other), other)
            if len(found) == CHOICES:
                break
        return list(found.values())[1:]

    def lengths(self) -> Lengths:
        """Return the approximate length of each sample as it is reworded, ``(N,)``."""
        lengths = np.array(self.whole.lengths(), np.int32)
        for index in self._styles:
            lengths[index] = approximate_length(self.at(index))
        return lengths

    def fingerprint(self) -> str:
        """Return the SHA-256 of the samples before they are reworded."""
        return self.whole.fingerprint()

    def stored_images(self) -> Iterator[StoredImage]:
        """Yield the stored images of all samples."""
        return self.whole.stored_images()


def _plain(answer: str) -> str:
    """Return an answer without margins and final period."""
    return answer.strip().removesuffix(".").rstrip()


def _key(answer: str) -> str:
    """Return what is equal for answers that differ in case, white space or final period."""
    return " ".join(_plain(answer).casefold().split())
