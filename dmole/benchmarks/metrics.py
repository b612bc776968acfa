"""Metrics with two profiles: the authors' computation, and the same without its quirks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from dmole._moved import moved_name
from dmole.benchmarks.shared.forms import obedience
from dmole.benchmarks.shared.rule import Judge, Rule
from dmole.metrics.base import PROFILES, Profile, ProfileScore, ScoringItem, TaskMetric, TaskScore

Details = dict[str, float | str]


class ProfiledMetric(TaskMetric):
    """A metric that computes a score under each profile and reports the selected one.

    Args:
        profile: The reported profile: "published", the result of the authors' evaluator, or
            "corrected". The score's `profiles` hold both.

    Attributes:
        pairing: Whether the authors pair answers and references by id or position in the file.

    Raises:
        ValueError: If the profile is unknown.
    """

    pairing: Literal["id", "position"] = "id"

    def __init__(self, profile: Profile = "published") -> None:
        super().__init__()
        if profile not in PROFILES:
            raise ValueError(f"profile must be 'published' or 'corrected', got {profile!r}")
        self.profile = profile

    def _score(self, items: Sequence[ScoringItem]) -> TaskScore:
        profiles, details = self._both(items)
        details["unparsable"] = details[f"unparsable_{self.profile}"]
        selected = profiles[self.profile]
        return TaskScore(selected.value, selected.per_sample, details, profiles, self.needs)

    @abstractmethod
    def _both(self, items: Sequence[ScoringItem]) -> tuple[dict[str, ProfileScore], Details]:
        """Return the scores under each profile, and the details.

        The details hold ``unparsable_published`` and ``unparsable_corrected``, the numbers of
        answers that each profile could not read; see `count_unparsable`.
        """


def count_unparsable(items: Sequence[ScoringItem], scores: Sequence[float | None]) -> int:
    """Return how many answers are blank or could not be read.

    A sample without an answer is not counted. A blank answer is counted in every profile, also
    where the authors' evaluator gives it a point.

    Args:
        items: The samples.
        scores: Score of each sample; None if its answer could not be read.
    """
    return sum(
        item.prediction is not None and (score is None or not item.text.strip())
        for item, score in zip(items, scores, strict=True)
    )


def judge_corrected(rule: Rule, item: ScoringItem) -> float | None:
    """Return the score under the corrected profile, in which a blank answer is never right."""
    return rule.corrected(item) if item.text.strip() else None


class RuleMetric(ProfiledMetric):
    """Mean of a rule that scores answers one by one.

    Its details hold the number of samples without an answer (``missing``) and the number of
    answers that are blank or that each profile could not read (``unparsable_published``,
    ``unparsable_corrected``, and ``unparsable`` for the reported one). If the rule knows the form
    that the questions ask for, they also hold the share of the answers that have it, in percent
    (``obedient_published``, ``obedient_corrected``, ``obedient``).

    Args:
        rule: Name of a rule, see `dmole.benchmarks.registry.RULES`.
        profile: The reported profile.

    Raises:
        ValueError: If the rule or the profile is unknown.
    """

    def __init__(self, rule: str, profile: Profile = "published") -> None:
        super().__init__(profile)
        rules = _rules()
        if rule not in rules:
            raise ValueError(f"unknown rule {rule!r}, expected one of {', '.join(rules)}")
        self.rule_name = rule
        self.needs = self.rule.needs
        self.pairing = self.rule.pairing

    @property
    def rule(self) -> Rule:
        """The rule."""
        return _rules()[self.rule_name]

    def _both(self, items: Sequence[ScoringItem]) -> tuple[dict[str, ProfileScore], Details]:
        rule = self.rule
        answered = [item for item in items if item.prediction is not None]
        details: Details = {}
        profiles: dict[str, ProfileScore] = {}
        judges: tuple[tuple[str, Judge], ...] = (
            ("published", rule.published),
            ("corrected", partial(judge_corrected, rule)),
        )
        for profile, judge in judges:
            scores = [None if item.prediction is None else judge(item) for item in items]
            percent = [100.0 * (score or 0.0) for score in scores]
            skips = profile == "published" and rule.missing == "skipped"
            count = len(answered) if skips else len(items)
            profiles[profile] = ProfileScore(sum(percent) / count if count else 0.0, percent)
            details[f"unparsable_{profile}"] = count_unparsable(items, scores)
        if rule.form is not None:
            skips = rule.missing == "skipped"
            details |= obedience(items, rule.form, self.profile, skips=skips)
        return profiles, details


def _rules() -> dict[str, Rule]:
    from dmole.benchmarks.registry import (
        RULES,
    )  # it imports the benchmarks, which import this module

    return RULES


def __getattr__(name: str) -> Any:
    return moved_name(__name__, name)
