"""Soft VQA accuracy: the EvalAI answer normalizer and agreement with several human answers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dmole.metrics.base import Profile

ARTICLES = frozenset({"a", "an", "the"})

_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(value) for value, word in enumerate(_NUMBER_WORDS.split())} | {"none": "0"}

# Each form is recognized with exactly one apostrophe left out: "couldnt've", "couldn'tve". Forms
# that would collide with a word (we'll, she'd, it's) or start with a capital I are not in the
# standard table and therefore not here.
_CONTRACTED_FORMS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't
    mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've
    should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
    someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't
    what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
    who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd
    you'd've you'll you're you've
"""

_FULL_CONTRACTIONS = {
    form[:index] + form[index + 1 :]: form
    for form in _CONTRACTED_FORMS.split()
    for index, letter in enumerate(form)
    if letter == "'"
} | {"somebodyd": "somebody'd"}

# the one entry of the standard table that removes an apostrophe
CONTRACTIONS = {form: full for form, full in _FULL_CONTRACTIONS.items() if form != "somebodyd"} | {
    "somebody'd": "somebodyd"
}

_SYMBOLS = ';/[]"{}()=+\\_-><@`!'
_PERIOD = re.compile(r"\.(?!\d)")
_PERIOD_OUTSIDE_NUMBERS = re.compile(r"(?<!\d)\.|\.(?!\d)")
_MOST_PERIODS = 32  # the published code removes at most this many from one answer


def normalize_answer(text: str, profile: Profile = "published") -> str:
    """Return an answer in the normalized form in which VQA answers are compared.

    The form is lower case, without commas, question marks and articles. A possessive ``'s`` is
    split off. A symbol is removed if any occurrence of it touches a space, else replaced with a
    space. Periods are kept only before digits. Numbers zero to ten become digits, and apostrophes
    are restored in contractions.

    Args:
        text: Any answer.
        profile: "corrected" keeps periods only between digits and removes all others, not just
            32; keeps articles if nothing else is left; and keeps the apostrophe of "somebody'd".

    Source:
        The normalizer of the EvalAI VQA challenge, as used by TextVQA, CoIN and D-MoLE.

    Example:
        >>> normalize_answer("The two dogs, maybe.")
        '2 dogs maybe'
    """
    corrected = profile == "corrected"
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.strip().replace("\n", " ").replace("\t", " ").strip()
    words = _strip_symbols(text, corrected).lower().split()
    digits = [NUMBERS.get(word, word) for word in words]
    kept = [word for word in digits if word not in ARTICLES]
    if corrected:
        return " ".join(_FULL_CONTRACTIONS.get(word, word) for word in kept or digits)
    return " ".join(CONTRACTIONS.get(word, word) for word in kept)


def _strip_symbols(text: str, corrected: bool) -> str:
    """Remove symbols or replace them with spaces, based on the unchanged text."""
    stripped = text
    for symbol in _SYMBOLS:
        touches_space = f"{symbol} " in text or f" {symbol}" in text
        stripped = stripped.replace(symbol, "" if touches_space else " ")
    if corrected:
        return _PERIOD_OUTSIDE_NUMBERS.sub("", stripped)
    return _PERIOD.sub("", stripped, count=_MOST_PERIODS)


def soft_accuracy(
    prediction: str, references: Sequence[str], profile: Profile = "published"
) -> float:
    r"""Return the agreement of the prediction with the human answers, in 0..1.

    .. math:: \frac{1}{n} \sum_{j=1}^{n}
        \min\left(1, \frac{|\{k \ne j : a_k = p\}|}{\min(3, n - 1)}\right)

    With ten answers, 0, 1, 2, 3, 4 matches give 0, 0.3, 0.6, 0.9, 1. The standard defines only
    ten answers. With fewer, three matches in a leave-one-out subset (or all answers, if the subset
    has fewer) count as full support, so that agreement with all answers is always 1. A single
    answer matches or not.

    Args:
        prediction: The answer to score; normalized here.
        references: ``n`` human answers; normalized here.
        profile: Profile of the normalization, see `normalize_answer`.

    Source:
        Antol et al., 2015, https://arxiv.org/abs/1505.00468, and the EvalAI evaluation.

    Example:
        >>> soft_accuracy("Two", ["2"] * 3 + ["three"] * 7)
        0.9
    """
    answer = normalize_answer(prediction, profile)
    count = len(references)
    matches = sum(normalize_answer(reference, profile) == answer for reference in references)
    if count == 1:
        return float(matches)
    enough = min(3, count - 1)
    without_match = min(1.0, matches / enough)  # a subset that leaves out a differing answer
    with_match = min(1.0, max(matches - 1, 0) / enough)  # a subset that leaves out a match
    return (matches * with_match + (count - matches) * without_match) / count
