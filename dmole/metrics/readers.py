"""Readers of short answers: option letters, yes or no, and numbers.

Every metric without profiles and every corrected profile reads answers with these functions, and
boxes with `dmole.metrics.boxes.BoxReader`. A published profile reads them as the authors' tool.
"""

from __future__ import annotations

import math
import re

_LATIN = "A-Za-z0-9\u00c0-\u024f"  # a letter may touch Chinese characters
_LETTER = re.compile(
    rf"(?<![{_LATIN}'\u2019-])([A-Za-z])(?![{_LATIN}]|['\u2019-][{_LATIN}]|\.[A-Za-z](?![{_LATIN}]))"
)
_NEXT_WORD = re.compile(r"[ \t]+(\w+)")
# words after which "A" or "a" is an option and not the article, and "I" not the pronoun
_VERBS = frozenset(("is", "was", "or", "and", "because", "since", "as"))
_VERBS_OF_A = _VERBS | frozenset(
    ("for", "due", "but", "so", "if", "fits", "matches", "seems", "has", "with", "would", "does")
)
_LABEL = re.compile(r"\b(?:option|choice|letter)\s+[(\[\"'*]*$", re.IGNORECASE)
_COLON = re.compile(r"\b(?:answer|option|choice|letter)\s*(?:is)?\s*:\s*[(\[\"'*]*$", re.IGNORECASE)
_OPENING = re.compile(r"[\W_]*(?:(?:the\s+)?(?:\w+\s+)?answer\s*(?:is)?\s*:)?[\W_]*", re.IGNORECASE)

_FILLER = r"(?:(?:be|the|an?|just|also|option|choice|answer|letter|either|is)\s+)*"
_RULED_OUT_BEFORE = re.compile(
    rf"(?:\bnot|n['\u2019]t|\bneither|\bnor|\bexcept|\brather than|\binstead of|\bcannot)\s+"
    rf"{_FILLER}[(\[\"'*]*$",
    re.IGNORECASE,
)
_OR = re.compile(r"[)\]\"'*]*\s*,?\s*(?:or|nor)\s+(?:option\s+)?[(\[\"'*]*", re.IGNORECASE)
_RULED_OUT_AFTER = re.compile(
    r"[)\]\"'*.]{0,3}(?:(?:\s*,|\s*/|\s+and|\s+or){1,2}\s*(?:option\s+)?[(\[\"'*]*[A-Za-z]\b[)\]\"'*]*)*"
    r"\s*,?\s+(?:(?:is|are|was|were|looks?|seems?)(?:\s+(?:both|all|clearly|obviously|also|just))?"
    r"\s+(?:not(?!\s+(?:wrong|incorrect|false|only))|wrong|incorrect|false|untrue|ruled out|"
    r"eliminated|impossible)\b|(?:isn|aren|wasn|doesn|don|can|couldn)['\u2019]t\b|cannot\b)",
    re.IGNORECASE,
)
_WINDOW = 80  # characters beside a letter that decide what it is

_YES_OR_NO = re.compile(
    r"(?<![^\W_])(?:(yes)|no|not|none|cannot|[a-z]+n['\u2019]t)(?![^\W_])", re.IGNORECASE
)

_SPACES = " \u00a0\u2009\u202f"
_DIGITS = rf"\d{{1,3}}(?:,\d{{2,3}})*,\d{{3}}|\d{{1,3}}(?:[{_SPACES}]\d{{3}})+|\d+"
_CURRENCY = "[$€£¥]?"
_NUMBER = re.compile(
    rf"([-+\u2212]?)\s*{_CURRENCY}\s*((?:{_DIGITS})(?:\.\d*)?|\.\d+)((?:e[-+]?\d+)?)"
    rf"\s*{_CURRENCY}\s*%?\.?",
    re.IGNORECASE | re.ASCII,
)
_NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five"),
    *("six", "seven", "eight", "nine", "ten"),
)


def option_letters(text: str, allowed: str) -> list[str]:
    """Return the option letters of an answer in order, without those that it rules out.

    A letter stands alone: not within a word or an abbreviation. The article "a", the pronoun "I"
    and letters that the text rules out ("not B", "A and B are wrong") do not count.

    Args:
        text: The answer.
        allowed: Letters of the options, upper case.

    Example:
        >>> option_letters("A and B are wrong, so it is C or (d).", "ABCD")
        ['C', 'D']
        >>> option_letters("It is a rock, I think", "ABCDEFGHI")
        []
    """
    return [letter for letter, _ in _standing(text, allowed)]


def option_letter(text: str, allowed: str, *, last: bool = False) -> str | None:
    """Return the option that an answer chooses, None if it names none.

    Args:
        text: The answer.
        allowed: Letters of the options, upper case.
        last: Whether the last letter counts if there are several, as in MMMU. A letter with a mark
            at the start ("B. a cat") precedes all others, and letters in round brackets precede
            those without. By default the first letter counts.

    Example:
        >>> option_letter("Not A. It is C", "ABCD"), option_letter("It is a leaf", "ABCD")
        ('C', None)
        >>> option_letter("A, no, B", "AB"), option_letter("A, no, B", "AB", last=True)
        ('A', 'B')
    """
    found = _standing(text, allowed)
    if not found:
        return None
    first, start = found[0]
    if not last or (_OPENING.fullmatch(text[:start]) and text[start + 1 : start + 2] in ").:]"):
        return first  # nothing after the letter is in the set, too
    enclosed = [(letter, at) for letter, at in found if text[at - 1 : at + 2] == f"({text[at]})"]
    return (enclosed or found)[-1][0]


def _standing(text: str, allowed: str) -> list[tuple[str, int]]:
    """Return the letters that count, with their positions."""
    found: list[tuple[str, int]] = []
    shouted = text.istitle() or text.isupper()
    ruled_out_until = -1  # end of the last letter if it was ruled out
    for match in _LETTER.finditer(text):
        start, end = match.span()
        if match[1].upper() not in allowed or _is_word(text, start, shouted):
            continue
        before, after = text[max(0, start - _WINDOW) : start], text[end : end + _WINDOW]
        chained = ruled_out_until >= 0 and _OR.fullmatch(text[ruled_out_until:start])
        if chained or _RULED_OUT_BEFORE.search(before) or _RULED_OUT_AFTER.match(after):
            ruled_out_until = end
            continue
        ruled_out_until = -1
        found.append((match[1].upper(), start))
    return found


def _is_word(text: str, start: int, shouted: bool) -> bool:
    """Return whether a lone letter is the article, the pronoun or the end of an abbreviation."""
    letter, before = text[start], text[max(0, start - _WINDOW) : start]
    if before.endswith(".") and before[-2:-1].isalpha() and not before[-3:-2].isalnum():
        return True
    following = _NEXT_WORD.match(text[start + 1 : start + 1 + _WINDOW])
    if letter not in "aAI" or following is None:
        return False
    word = following[1].lower()
    if _LABEL.search(before) or word in (_VERBS_OF_A if letter == "A" else _VERBS):
        return False
    if letter != "A" or shouted:
        return True
    starts_sentence = not before.strip() or before.rstrip()[-1] in ".!?:" or "\n" in before[-2:]
    return starts_sentence and not _COLON.search(before)


def yes_or_no(text: str) -> str | None:
    """Return "yes" or "no", whichever an answer says first; None if it says neither.

    A negation ("not", "isn't", "none") is a no.

    Example:
        >>> yes_or_no("Yes, it is."), yes_or_no("There isn't."), yes_or_no("a dog, nothing else")
        ('yes', 'no', None)
    """
    match = _YES_OR_NO.search(text)
    return None if match is None else "yes" if match[1] else "no"


def read_number(text: str) -> float | None:
    """Return the number that an answer consists of, None if it is not one finite number.

    A currency sign, a percent sign and a final period may be present; the value is that before
    the percent sign. Thousands may be separated by commas or spaces. The words zero to ten are
    numbers.

    Example:
        >>> read_number("$1,040.50"), read_number("12 %"), read_number("two"), read_number("1,04")
        (1040.5, 12.0, 2.0, None)
        >>> read_number("nan"), read_number("1e999"), read_number("5 kg")
        (None, None, None)
    """
    bare = text.strip()
    word = bare.rstrip(".").lower()
    if word in _NUMBER_WORDS:
        return float(_NUMBER_WORDS.index(word))
    match = _NUMBER.fullmatch(bare)
    if match is None:
        return None
    digits = re.sub(rf"[,{_SPACES}]", "", match[2])
    value = float(f"{digits}{match[3]}")
    if not math.isfinite(value):
        return None
    return -value if match[1] in ("-", "\u2212") else value
