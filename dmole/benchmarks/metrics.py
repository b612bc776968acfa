"""Metrics with two profiles: the authors' computation, and the same without its quirks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

from dmole._moved import moved_name
from dmole.benchmarks.shared.rule import Rule
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
        selected = profiles[self.profile]
        return TaskScore(selected.value, selected.per_sample, details, profiles, self.needs)

    @abstractmethod
    def _both(self, items: Sequence[ScoringItem]) -> tuple[dict[str, ProfileScore], Details]:
        """Return the scores under each profile, and the details."""


class RuleMetric(ProfiledMetric):
    """Mean of a rule that scores answers one by one.

    Its details hold the number of samples without an answer (``missing``) and the number of
    answers that each profile could not parse (``unparsable_published``,
    ``unparsable_corrected``).

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
        details: Details = {"missing": len(items) - len(answered)}
        profiles: dict[str, ProfileScore] = {}
        for profile, judge in (("published", rule.published), ("corrected", rule.corrected)):
            scores = [None if item.prediction is None else judge(item) for item in items]
            percent = [100.0 * (score or 0.0) for score in scores]
            skips = profile == "published" and rule.missing == "skipped"
            count = len(answered) if skips else len(items)
            profiles[profile] = ProfileScore(sum(percent) / count if count else 0.0, percent)
            unread = sum(score is None for score in scores) - int(details["missing"])
            details[f"unparsable_{profile}"] = unread
        return profiles, details


def _rules() -> dict[str, Rule]:
    from dmole.benchmarks.registry import (
        RULES,
    )  # it imports the benchmarks, which import this module

    return RULES


def __getattr__(name: str) -> Any:
    return moved_name(__name__, name)
