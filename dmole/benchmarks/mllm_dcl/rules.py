"""The rules of the five domains of MLLM-DCL, as in MCITlib."""

from __future__ import annotations

from dmole.benchmarks.shared.rule import Rule, any_reference, has_words, tidy
from dmole.benchmarks.shared.words import BLANK_FIX, REFUSAL, same_tidy
from dmole.metrics.base import ScoringItem

_FOLDER = "MCITlib, LoRA-FT/llava/eval/CoIN/"
_EXACT_SOURCES = ("AI2D", "TQA", "VQA", "SciVerse")


def occurs(prediction: str, answer: str) -> bool:
    """Return whether the answer occurs in the prediction and the prediction is no refusal (Med).

    Example:
        >>> occurs("this is abnormal", "no")
        True
    """
    return REFUSAL not in prediction and answer.lower() in prediction.lower()


def occurs_as_words(prediction: str, answer: str) -> bool:
    """Return whether the answer occurs as whole words; a blank answer occurs in nothing.

    Example:
        >>> occurs_as_words("this is abnormal", "no"), occurs_as_words("No.", "no")
        (False, True)
    """
    return has_words(tidy(prediction), tidy(answer))


def domain(prediction: str, answer: str) -> bool:
    """Return whether the prediction contains the answer by the rule of RS and AD.

    An answer of several words may occur anywhere. A single word, without its periods, must be next
    to a space, a period or a comma if the prediction contains a space.

    Example:
        >>> domain("keep award", "a"), domain("72.2", "72.2")
        (True, False)
    """
    if REFUSAL in prediction:
        return False
    text, words = prediction.lower(), answer.lower()
    if " " in words:
        return words in text
    word = words.replace(".", "")
    if " " not in text:
        return word in text
    return any(word + edge in text or edge + word in text for edge in " .,")


def science(prediction: str, answer: str, image: str, question: str) -> float:
    """Return the score of an answer by the rule of Sci, which depends on the source of the item.

    Args:
        prediction: The answer to score.
        answer: The gold answer.
        image: File name of the image; its prefix names the source.
        question: The question.

    Example:
        >>> science("Ohio, Iowa", "ohio, utah", "MapQA_1.png", "Which states are red?")
        0.5
        >>> science("Utah, Ohio", "ohio, utah", "MapQA_1.png", "Which states are red?")
        0.0
    """
    if REFUSAL in prediction:
        return 0.0
    text, target = prediction.lower(), answer.lower()
    if image.startswith(_EXACT_SOURCES):
        return float(text == target)
    if "Which states" not in question:
        return float(target in text)
    names, gold = text.split(","), target.split(",")
    return sum(part in names for part in gold) / len(gold)


def science_corrected(prediction: str, answer: str, image: str, question: str) -> float:
    """Return the same score, comparing whole names after `tidy`.

    Example:
        >>> science_corrected("Utah, Ohio", "ohio, utah", "MapQA_1.png", "Which states are red?")
        1.0
    """
    if image.startswith(_EXACT_SOURCES):
        return float(same_tidy(prediction, answer))
    if "which states" not in question.lower():
        return float(occurs_as_words(prediction, answer))
    names = {tidy(part) for part in prediction.split(",")}
    gold = {tidy(part) for part in answer.split(",")} - {""}
    return sum(part in names for part in gold) / len(gold) if gold else 0.0


def finance(prediction: str, answer: str) -> bool:
    """Return whether the prediction in lower case without spaces and periods equals the answer.

    Example:
        >>> finance("A.", "A"), finance("not sure", "not sure")
        (True, False)
    """
    return prediction.lower().replace(" ", "").replace(".", "") == answer.lower()


def finance_corrected(prediction: str, answer: str) -> bool:
    """Return whether both are equal in lower case without white space and periods."""
    return _squeeze(prediction) == _squeeze(answer) != ""


def _squeeze(text: str) -> str:
    return "".join(text.lower().replace(".", "").split())


def _origin(item: ScoringItem) -> tuple[str, str]:
    """Return file name and question of an item.

    Raises:
        ValueError: If the metadata lacks one.
    """
    for key in ("image", "question"):
        if not isinstance(item.metadata.get(key), str):
            raise ValueError(
                f"the rule of Sci needs the {key!r} of every sample: none is known where the "
                f"reference is {item.references[0]!r}"
            )
    image = item.metadata["image"].replace("\\", "/").rpartition("/")[2]
    return image, item.metadata["question"]


def _science(item: ScoringItem) -> float:
    origin = _origin(item)
    return max(science(item.text, reference, *origin) for reference in item.references)


def _science_corrected(item: ScoringItem) -> float:
    origin = _origin(item)
    return max(science_corrected(item.text, answer, *origin) for answer in item.references)


_REFUSAL_FIX = "'Unanswerable' is judged like any answer"

RS_AD = Rule(
    published=any_reference(domain),
    corrected=any_reference(occurs_as_words),
    does="an answer of several words may stand anywhere; one word, its periods removed, needs a "
    "space, period or comma on one side if the prediction has spaces, else it may stand anywhere; "
    "'Unanswerable' is wrong",
    fixes=(
        "only whole words count: 'no' is not found in 'north' or 'casino'",
        "decimal points stay ('72.2' equals itself); a final period is ignored on both sides",
        "a blank gold answer matches nothing",
        BLANK_FIX,
        _REFUSAL_FIX,
    ),
    source=_FOLDER + "eval_ai2d.py",
)

MED = Rule(
    published=any_reference(occurs),
    corrected=any_reference(occurs_as_words),
    does="the answer occurs anywhere in the prediction, in any case; 'Unanswerable' is wrong",
    fixes=(
        "only whole words count: 'no' is not found in 'abnormal'",
        "a blank gold answer matches nothing",
        BLANK_FIX,
        _REFUSAL_FIX,
    ),
    source=_FOLDER + "eval_pvqa.py",
)

SCI = Rule(
    published=_science,
    corrected=_science_corrected,
    does="by the image's file name: AI2D, TQA, VQA, SciVerse equal in lower case; others by the "
    "question: 'Which states' gives the share of the gold list found, else the answer occurs; "
    "'Unanswerable' is wrong",
    fixes=(
        "the names of a list are trimmed: 'ohio, utah' is found in 'utah, ohio'",
        "a name that the gold list repeats counts once",
        "'which states' is found in any case",
        "elsewhere only whole words count; margins and a final period are ignored",
        BLANK_FIX,
        _REFUSAL_FIX,
    ),
    source=_FOLDER + "eval_sci.py",
    needs=("image", "question"),
)

FIN = Rule(
    published=any_reference(finance),
    corrected=any_reference(finance_corrected),
    does="equal in lower case after spaces and periods are removed from the prediction only",
    fixes=("white space and periods are removed from the gold answer too", BLANK_FIX),
    source=_FOLDER + "eval_finvis.py",
)
