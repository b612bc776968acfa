"""Metrics with two profiles: what a benchmark's authors compute, and the same without quirks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

from dmole.benchmarks.rules import RULES, Rule
from dmole.benchmarks.rules.choice import MULTICHOICE, judge_batch
from dmole.metrics.base import PROFILES, Item, Profile, ProfileScore, TaskMetric, TaskScore
from dmole.metrics.captions import SetScore, score_captions
from dmole.metrics.meteor import meteor_missing, require_meteor
from dmole.metrics.tokenizers import resolve_tokenizer

Details = dict[str, float | str]


class ProfiledMetric(TaskMetric):
    """A metric that scores once under each profile and reports the chosen one.

    Args:
        profile: Whose value is the score: "published", what the authors' evaluator gives, or
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

    def _score(self, items: Sequence[Item]) -> TaskScore:
        profiles, details = self._both(items)
        chosen = profiles[self.profile]
        return TaskScore(chosen.value, chosen.per_sample, details, profiles, self.needs)

    @abstractmethod
    def _both(self, items: Sequence[Item]) -> tuple[dict[str, ProfileScore], Details]:
        """Return the scores under each profile, and the details."""


class RuleMetric(ProfiledMetric):
    """Mean of a rule that judges one answer after the other.

    Its details say how many samples had no answer (``missing``), and how many answers each
    profile could not read (``unparsable_published``, ``unparsable_corrected``).

    Args:
        rule: Name of a rule, see `dmole.benchmarks.rules.RULES`.
        profile: Whose value is the score.

    Raises:
        ValueError: If the rule or the profile is unknown.
    """

    def __init__(self, rule: str, profile: Profile = "published") -> None:
        super().__init__(profile)
        if rule not in RULES:
            raise ValueError(f"unknown rule {rule!r}, expected one of {', '.join(RULES)}")
        self.rule_name = rule
        self.needs = self.rule.needs
        self.pairing = self.rule.pairing

    @property
    def rule(self) -> Rule:
        """The rule itself."""
        return RULES[self.rule_name]

    def _both(self, items: Sequence[Item]) -> tuple[dict[str, ProfileScore], Details]:
        rule = self.rule
        answered = [item for item in items if item.prediction is not None]
        details: Details = {"missing": len(items) - len(answered)}
        profiles: dict[str, ProfileScore] = {}
        for profile, judge in (("published", rule.published), ("corrected", rule.corrected)):
            found = [None if item.prediction is None else judge(item) for item in items]
            percent = [100.0 * (score or 0.0) for score in found]
            skips = profile == "published" and rule.missing == "skipped"
            count = len(answered) if skips else len(items)
            profiles[profile] = ProfileScore(sum(percent) / count if count else 0.0, percent)
            unread = sum(score is None for score in found) - int(details["missing"])
            details[f"unparsable_{profile}"] = unread
        return profiles, details


class MultichoiceInBatches(ProfiledMetric):
    """D-MoLE's multiple choice with the options of a batch's first sample used for all of it.

    The release does so when it evaluates in batches; the corrected profile is that of
    "dmole_multichoice". Samples must come in the order of the file.

    Args:
        batch_size: Samples per batch.
        profile: Whose value is the score.

    Raises:
        ValueError: If the batch size is below one or the profile unknown.
    """

    needs = MULTICHOICE.needs

    def __init__(self, batch_size: int = 8, profile: Profile = "published") -> None:
        super().__init__(profile)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size

    def _both(self, items: Sequence[Item]) -> tuple[dict[str, ProfileScore], Details]:
        published: list[float] = []
        for start in range(0, len(items), self.batch_size):
            published += judge_batch(items[start : start + self.batch_size])
        corrected = [MULTICHOICE.corrected(item) or 0.0 for item in items]
        profiles = {}
        for profile, scores in (("published", published), ("corrected", corrected)):
            percent = [100.0 * score for score in scores]
            profiles[profile] = ProfileScore(sum(percent) / len(percent), percent)
        return profiles, {"batch_size": self.batch_size}


class UCITCaption(ProfiledMetric):
    """Captions of UCIT: VizWiz-cap and Flickr30k.

    Published is the plain mean of BLEU-1 to BLEU-4, METEOR, ROUGE-L and CIDEr, each x 100, with
    answers and references paired by position. Corrected is CIDEr x 100, the figure of COCO
    evaluation, because a mean of unlike scales is mostly CIDEr anyway; paired by id. The details
    hold all seven, and the name of the tokenizer. A sample's published score is the mean of its
    own seven figures; BLEU and METEOR of a set are not means over samples.

    Args:
        tokenizer: "ptb" (Java), "python", or "auto", which is "ptb" where Java is on the path.
        profile: Whose value is the score. Without Java there is no METEOR and so no published
            score; the corrected one is then given alone.

    Raises:
        ValueError: If the published profile is chosen and there is no Java, or an option is
            unknown.

    Source:
        MCITlib, LoRA-FT/llava/eval/CoIN/eval_caption.py.
    """

    pairing = "position"

    def __init__(
        self,
        tokenizer: Literal["auto", "ptb", "python"] = "auto",
        profile: Profile = "published",
    ) -> None:
        super().__init__(profile)
        self.tokenizer_name = resolve_tokenizer(tokenizer)
        if profile == "published":
            require_meteor()

    def _both(self, items: Sequence[Item]) -> tuple[dict[str, ProfileScore], Details]:
        missing = meteor_missing()
        names = ("bleu", "rouge_l", "cider") if missing else ("bleu", "meteor", "rouge_l", "cider")
        texts, references = [item.text for item in items], [item.references for item in items]
        found = score_captions(texts, references, self.tokenizer_name, names)
        details: Details = {"tokenizer": self.tokenizer_name}
        details |= {name: 100.0 * value for name, (value, _) in found.items()}
        profiles = {"corrected": _percent(found["cider"])}
        if missing:
            details["published"] = f"not computed: {missing}"
        else:
            each = [_percent(score) for score in found.values()]
            columns = zip(*(score.per_sample for score in each), strict=True)
            profiles["published"] = ProfileScore(
                sum(score.value for score in each) / len(each),
                [sum(column) / len(each) for column in columns],
            )
        return profiles, details


def _percent(score: SetScore) -> ProfileScore:
    value, per_sample = score
    return ProfileScore(100.0 * value, [100.0 * each for each in per_sample])
