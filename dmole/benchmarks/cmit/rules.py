"""The rules of D-MoLE's nine tasks whose answers are words or letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dmole.benchmarks.metrics import (
    Details,
    ProfiledMetric,
    count_unparsable,
    judge_corrected,
)
from dmole.benchmarks.shared.options import (
    LETTERS,
    judge_letter,
    option_texts,
    right_letters,
)
from dmole.benchmarks.shared.rule import Rule, any_reference, has_words
from dmole.benchmarks.shared.words import BLANK_FIX, same_tidy, soft_rule
from dmole.metrics.base import Profile, ProfileScore, ScoringItem
from dmole.metrics.readers import option_letter


def release_letter(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter as parsed by D-MoLE's release; None for a blank answer, where it crashes.

    Args:
        text: The answer.
        options: Text of each option by its letter.

    Example:
        >>> release_letter("liver.", {"A": "left lung", "B": "liver"})
        'B'
    """
    answer = text.strip()
    if len(answer) == 1:
        return answer
    if not answer:
        return None
    if answer[0] in options:
        return answer[0]
    return next((letter for letter, option in options.items() if option in answer), answer)


def _options(item: ScoringItem) -> dict[str, str]:
    choices = option_texts(item.metadata)
    if not choices:
        raise ValueError(
            "this rule needs the texts of the options: a sample has no 'choices' "
            f"(its reference is {item.references[0]!r})"
        )
    return dict(zip(LETTERS, choices, strict=False))


def _multichoice(item: ScoringItem) -> float | None:
    letter = release_letter(item.text, _options(item))
    return None if letter is None else float(letter in right_letters(item))


def judge_batch(items: Sequence[ScoringItem]) -> list[float]:
    """Return the scores of a batch, parsing all answers with the options of its first sample.

    Args:
        items: The samples of one batch, in the order of the file.
    """
    options = _options(items[0])
    return [float(release_letter(item.text, options) in right_letters(item)) for item in items]


def _multichoice_corrected(item: ScoringItem) -> float | None:
    """Match the whole answer to an option's text, else a letter, else the longest option in it."""
    options = {letter: " ".join(text.lower().split()) for letter, text in _options(item).items()}
    answer = " ".join(item.text.lower().split())
    bare = answer.strip(" .:;,()[]\"'")
    whole = [letter for letter, text in options.items() if text in (answer, bare)]
    letter = whole[0] if whole else option_letter(item.text, "".join(options))
    if letter is None:
        inside = [key for key, text in options.items() if has_words(answer, text)]
        letter = max(inside, key=lambda key: len(options[key]), default=None)
    return judge_letter(item, letter)


def release_equal(prediction: str, answer: str) -> bool:
    """Return whether both are equal, trimmed and in lower case.

    Example:
        >>> release_equal(" Red", "red"), release_equal(" ", "")
        (True, True)
    """
    return prediction.strip().lower() == answer.strip().lower()


EXACT = Rule(
    published=any_reference(release_equal),
    corrected=any_reference(same_tidy),
    does="trimmed and lower-cased, equal to any accepted answer",
    fixes=("double spaces and a final period are ignored on both sides", BLANK_FIX),
    source="D-MoLE, eval/vqa/evaluate_vqa.py",
)

VIZWIZ_SOFT = soft_rule("D-MoLE, eval/vqa/textvqa_eval.py, evaluate_vqa.py")

MULTICHOICE = Rule(
    published=_multichoice,
    corrected=_multichoice_corrected,
    does="a one-character answer as it is; else its first character if that is an option's letter; "
    "else the first option whose text occurs in it, in the case it is written "
    "in; a blank answer, on which the release crashes, is wrong",
    fixes=(
        "a lower-case letter is an answer",
        "a word that begins with an option's letter ('dark red', 'Because ...') is not that option",
        "a letter in brackets or at the end of a sentence is read, one that the answer rules out "
        "('not A') is passed over",
        "options are found as whole words, in either case, the longest first",
    ),
    source="D-MoLE, eval/vqa/evaluate_multi_choice.py",
    needs=("choices", "answer_index"),
)


class MultichoiceInBatches(ProfiledMetric):
    """D-MoLE's multiple choice where a batch uses the options of its first sample.

    The release behaves this way when it evaluates in batches. The corrected profile is that of
    "dmole_multichoice". Samples must be in the order of the file.

    Args:
        batch_size: Samples per batch.
        profile: The reported profile.

    Raises:
        ValueError: If the batch size is below one or the profile unknown.
    """

    needs = MULTICHOICE.needs

    def __init__(self, batch_size: int = 8, profile: Profile = "published") -> None:
        super().__init__(profile)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size

    def _both(self, items: Sequence[ScoringItem]) -> tuple[dict[str, ProfileScore], Details]:
        published: list[float] = []
        for start in range(0, len(items), self.batch_size):
            published += judge_batch(items[start : start + self.batch_size])
        corrected = [judge_corrected(MULTICHOICE, item) for item in items]
        profiles = {}
        details: Details = {"batch_size": self.batch_size}
        for profile, scores in (("published", published), ("corrected", corrected)):
            percent = [100.0 * (score or 0.0) for score in scores]
            profiles[profile] = ProfileScore(sum(percent) / len(percent), percent)
            details[f"unparsable_{profile}"] = count_unparsable(items, scores)
        return profiles, details
