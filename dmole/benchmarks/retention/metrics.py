"""Metrics of MME, POPE and MMMU, which measure the abilities that a model retains."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from string import ascii_uppercase

from dmole.benchmarks.metrics import Details, ProfiledMetric, count_unparsable
from dmole.metrics.base import ProfileScore, ScoringItem, TaskMetric, TaskScore, mean_score
from dmole.metrics.readers import option_letter, yes_or_no

PERCEPTION = (
    *("existence", "count", "position", "color", "posters"),
    *("celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = (
    *("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)

_NOTE = re.compile(r"^(\w+) image=(.+)$", re.DOTALL)
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


def option_answer(text: str, choices: int | None = None) -> str | None:
    """Return the option that an answer of MMMU chooses: the last letter in it.

    Args:
        text: The answer.
        choices: Number of options; up to 26 if it is unknown.

    Example:
        >>> option_answer("(B) a cat"), option_answer("Not A. It is C"), option_answer("cat")
        ('B', 'C', None)
    """
    return option_letter(text, ascii_uppercase[:choices], last=True)


class _YesNoMetric(ProfiledMetric):
    """A metric of yes/no questions whose profiles differ in how they read an answer.

    The corrected profile reads answers by `dmole.metrics.readers.yes_or_no`.
    """

    def _both(self, items: Sequence[ScoringItem]) -> tuple[dict[str, ProfileScore], Details]:
        profiles: dict[str, ProfileScore] = {}
        selected: Details = {}
        unparsable: Details = {}
        for profile, read in (("published", self._published), ("corrected", yes_or_no)):
            said = [None if item.prediction is None else read(item.text) for item in items]
            value, per_sample, details = self._figures(said, items)
            profiles[profile] = ProfileScore(value, per_sample)
            read_as = [None if answer is None else 1.0 for answer in said]
            unparsable[f"unparsable_{profile}"] = count_unparsable(items, read_as)
            selected = details if profile == self.profile else selected
        return profiles, selected | unparsable

    @staticmethod
    @abstractmethod
    def _published(text: str) -> str | None:
        """Return "yes" or "no" as parsed by the authors' tool, None for another answer."""

    @abstractmethod
    def _figures(
        self, said: Sequence[str | None], items: Sequence[ScoringItem]
    ) -> tuple[float, list[float], Details]:
        """Return the score of the set, those of the samples, and the details, in percent."""


class MME(_YesNoMetric):
    """MME: mean over its sub-tasks of half of accuracy + accuracy+, in percent.

    Accuracy+ is the share of images with both questions answered correctly. The `details` hold
    ``perception`` (out of 2000) and ``cognition`` (out of 800) as MME reports them, summed over
    the sub-tasks in the data, and each sub-task (out of 200). References are
    ``Yes image=<sub-task>/<name>``.

    The published profile reads an answer as MME's tool, see `mme_answer`.

    Args:
        profile: The reported profile.

    Source:
        Fu et al., 2023, https://arxiv.org/abs/2306.13394.
    """

    @staticmethod
    def _published(text: str) -> str | None:
        answer = mme_answer(text)
        return None if answer == "other" else answer

    def _figures(
        self, said: Sequence[str | None], items: Sequence[ScoringItem]
    ) -> tuple[float, list[float], Details]:
        hits: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
        per_sample = []
        for answer, item in zip(said, items, strict=True):
            note = _NOTE.match(item.references[0])
            if note is None:
                raise ValueError(f"reference {item.references[0]!r} does not name the image of MME")
            right = answer == note[1].lower()
            hits[note[2].partition("/")[0]][note[2]].append(right)
            per_sample.append(100.0 * right)
        points = {name: _mme_points(list(images.values())) for name, images in hits.items()}
        details: Details = {
            "perception": sum(value for name, value in points.items() if name in PERCEPTION),
            "cognition": sum(value for name, value in points.items() if name in COGNITION),
            **points,
        }
        return sum(points.values()) / (2 * len(points)), per_sample, details


def _mme_points(images: list[list[bool]]) -> float:
    answers = [right for image in images for right in image]
    both = [all(image) for image in images]
    return 100.0 * (sum(answers) / len(answers) + sum(both) / len(both))


class POPE(_YesNoMetric):
    """POPE: accuracy; the `details` hold precision, recall, F1 and the share of "yes", in percent.

    The published profile reads an answer as LLaVA's tool, see `pope_answer`: whatever has no "no"
    is a yes, also a blank answer.

    Args:
        profile: The reported profile.

    Source:
        Li et al., 2023, https://arxiv.org/abs/2305.10355.
    """

    @staticmethod
    def _published(text: str) -> str | None:
        return pope_answer(text)

    def _figures(
        self, said: Sequence[str | None], items: Sequence[ScoringItem]
    ) -> tuple[float, list[float], Details]:
        true = [item.references[0].strip().lower() for item in items]
        both = sum(s == t == "yes" for s, t in zip(said, true, strict=True))
        predicted, actual = (answers.count("yes") for answers in (list(said), true))
        precision = both / predicted if predicted else 0.0
        recall = both / actual if actual else 0.0
        f1 = 2 * precision * recall / (precision + recall) if both else 0.0
        details: Details = {
            "precision": 100.0 * precision,
            "recall": 100.0 * recall,
            "f1": 100.0 * f1,
            "yes_share": 100.0 * predicted / len(said),
        }
        score = mean_score([float(s == t) for s, t in zip(said, true, strict=True)])
        return score.value, score.per_sample, details


class MMMU(TaskMetric):
    """MMMU: share of right letters, and of open answers equal to the accepted one.

    The last letter of an answer counts, as in MMMU's own tool, see
    `dmole.metrics.readers.option_letter`. An answer without a letter is wrong and counts as
    ``unparsable``; MMMU's tool draws one at random instead.

    Source:
        Yue et al., 2024, https://arxiv.org/abs/2311.16502, ``eval_utils.py``.
    """

    needs = ("choices",)

    def _score(self, items: Sequence[ScoringItem]) -> TaskScore:
        hits = [_mmmu_hit(item) for item in items]
        unread = count_unparsable(items, hits)
        score = mean_score([hit or 0.0 for hit in hits], {"unparsable": unread})
        return replace(score, needs=self.needs)


def _mmmu_hit(item: ScoringItem) -> float | None:
    """Return the score of an answer, None if it cannot be read."""
    right = item.references[0].strip()
    if len(right) == 1 and right.isupper():
        choices = item.metadata.get("choices")
        count = len(choices) if isinstance(choices, list | tuple) and choices else None
        letter = option_answer(item.text, count)
        return None if letter is None else float(letter == right)
    answer = _plain(item.text)
    return float(answer == _plain(right)) if answer else None


def _plain(text: str) -> str:
    return " ".join(_PARTS.split(text.lower())).strip()
