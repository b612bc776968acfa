"""Metrics of MME, POPE and MMMU, which measure the abilities that a model retains."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from dmole.metrics.base import ScoringItem, TaskMetric, TaskScore, mean_score

PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = (
    *("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)

_NOTE = re.compile(r"^(\w+) image=(.+)$", re.DOTALL)
# "A cat" and "I think" begin with words, not with options
_FIRST = re.compile(r"\(?([A-Z])(?:[).:,]|$)")
_LONE = re.compile(r"(?<![\w'])(A(?!\w| [a-z])|[B-HJ-Z](?!\w))")
_PARTS = re.compile(r"[.\s,]+")


def mme_answer(text: str) -> str:
    """Return "yes" or "no" as parsed by MME, else "other".

    Source:
        MME ``eval_tool/calculation.py``: the whole answer, else its first four characters.

    Example:
        >>> mme_answer("Yes, it is."), mme_answer("It is not.")
        ('yes', 'other')
    """
    answer = text.strip().lower()
    if answer in ("yes", "no"):
        return answer
    start = answer[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def pope_answer(text: str) -> str:
    """Return "yes" or "no" as parsed by LLaVA: an answer without a "no" is a yes.

    Source:
        LLaVA-1.5 ``llava/eval/eval_pope.py``: the words of the first sentence.

    Example:
        >>> pope_answer("There is not. Yes!"), pope_answer("A dog.")
        ('no', 'yes')
    """
    words = text.strip().split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def option_answer(text: str) -> str | None:
    """Return the letter at the start of an answer, else the first lone capital in it.

    Example:
        >>> option_answer("(B) a cat"), option_answer("The answer is C."), option_answer("cat")
        ('B', 'C', None)
    """
    match = _FIRST.match(text.strip()) or _LONE.search(text)
    return match[1] if match else None


class MME(TaskMetric):
    """MME: mean over its sub-tasks of half of accuracy + accuracy+, in percent.

    Accuracy+ is the share of images with both questions answered correctly. The `details` hold
    ``perception`` (out of 2000) and ``cognition`` (out of 800) as MME reports them, summed over
    the sub-tasks in the data, and each sub-task (out of 200). References are
    ``Yes image=<sub-task>/<name>``.

    Source:
        Fu et al., 2023, https://arxiv.org/abs/2306.13394.
    """

    def _score(self, items: Sequence[ScoringItem]) -> TaskScore:
        hits: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
        per_sample = []
        for text, accepted in ((item.text, item.references) for item in items):
            note = _NOTE.match(accepted[0])
            if note is None:
                raise ValueError(f"reference {accepted[0]!r} does not name the image of MME")
            right = mme_answer(text) == note[1].lower()
            hits[note[2].partition("/")[0]][note[2]].append(right)
            per_sample.append(100.0 * right)
        points = {name: _mme_points(list(images.values())) for name, images in hits.items()}
        details: dict[str, float | str] = {
            "perception": sum(value for name, value in points.items() if name in PERCEPTION),
            "cognition": sum(value for name, value in points.items() if name in COGNITION),
            **points,
        }
        return TaskScore(sum(points.values()) / (2 * len(points)), per_sample, details)


def _mme_points(images: list[list[bool]]) -> float:
    answers = [right for image in images for right in image]
    both = [all(image) for image in images]
    return 100.0 * (sum(answers) / len(answers) + sum(both) / len(both))


class POPE(TaskMetric):
    """POPE: accuracy; the `details` hold precision, recall, F1 and the share of "yes", in percent.

    Source:
        Li et al., 2023, https://arxiv.org/abs/2305.10355.
    """

    def _score(self, items: Sequence[ScoringItem]) -> TaskScore:
        said = [pope_answer(item.text) == "yes" for item in items]
        true = [item.references[0].strip().lower() == "yes" for item in items]
        both = sum(s and t for s, t in zip(said, true, strict=True))
        precision = both / sum(said) if any(said) else 0.0
        recall = both / sum(true) if any(true) else 0.0
        f1 = 2 * precision * recall / (precision + recall) if both else 0.0
        details: dict[str, float | str] = {
            "precision": 100.0 * precision,
            "recall": 100.0 * recall,
            "f1": 100.0 * f1,
            "yes_share": 100.0 * sum(said) / len(said),
        }
        return mean_score([float(s == t) for s, t in zip(said, true, strict=True)], details)


class MMMU(TaskMetric):
    """MMMU: share of right letters, and of open answers equal to the accepted one.

    An answer without a letter is wrong; MMMU's own tool draws one at random instead.

    Source:
        Yue et al., 2024, https://arxiv.org/abs/2311.16502.
    """

    def _score(self, items: Sequence[ScoringItem]) -> TaskScore:
        return mean_score([_mmmu_hit(item.text, item.references[0].strip()) for item in items])


def _mmmu_hit(text: str, right: str) -> float:
    if len(right) == 1 and right.isupper():
        return float(option_answer(text) == right)
    return float(_plain(text) == _plain(right))


def _plain(text: str) -> str:
    return " ".join(_PARTS.split(text.lower())).strip()
