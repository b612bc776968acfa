"""The verb ``score``: pairs predictions with references and prints the scores of each profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from dmole.benchmarks.metrics import ProfiledMetric
from dmole.benchmarks.predictions import (
    Prediction,
    Target,
    predictions_of,
    read_predictions,
    read_targets,
)
from dmole.benchmarks.registry import build_metric, metric_of_task
from dmole.cli.arguments import ArgumentParser
from dmole.messages import json_text, show
from dmole.metrics import TaskMetric, TaskScore
from dmole.metrics.base import Profile


@dataclass(frozen=True)
class Pairs:
    """Targets with their answers.

    Args:
        targets: The expected answers.
        answers: Prediction for each target; None if there is none.
        ignored: Number of predictions that belong to no target.
    """

    targets: Sequence[Target]
    answers: Sequence[Prediction | None]
    ignored: int = 0

    @property
    def missing(self) -> int:
        """Number of targets without an answer, or with an answer of null."""
        return sum(answer is None or answer.text is None for answer in self.answers)

    def score(self, metric: TaskMetric) -> TaskScore:
        """Return the score of all pairs."""
        pairs = list(zip(self.targets, self.answers, strict=True))
        return metric.score(
            [None if answer is None else answer.text for _, answer in pairs],
            [target.references for target, _ in pairs],
            [{**(answer.metadata if answer else {}), **t.metadata} for t, answer in pairs],
        )


def pair_by_id(answers: Sequence[Prediction], targets: Sequence[Target]) -> Pairs:
    """Return the targets with the answers of their ids.

    Raises:
        ValueError: If two answers have the same id, or no answer has the id of a target.
    """
    by_id: dict[str, Prediction] = {}
    for answer in answers:
        if answer.id in by_id:
            first = by_id[answer.id].where.rpartition(": ")[2]
            raise ValueError(
                f"{answer.where}: the predictions hold two answers for the id {answer.id!r}; "
                f"the first is in {first}"
            )
        by_id[answer.id] = answer
    target_ids = {target.id for target in targets}
    ignored = sum(answer.id not in target_ids for answer in answers)
    if ignored == len(answers):
        raise ValueError(
            f"no prediction has an id of the references: {answers[0].id!r} against "
            f"{targets[0].id!r}, for example"
        )
    return Pairs(targets, [by_id.get(target.id) for target in targets], ignored)


def pair_by_position(answers: Sequence[Prediction], targets: Sequence[Target]) -> Pairs:
    """Return the targets with the answers at their positions; the last targets may have none.

    Raises:
        ValueError: If there are more answers than targets.
    """
    if len(answers) > len(targets):
        raise ValueError(
            f"{len(answers)} predictions but {len(targets)} references: this metric pairs them "
            "by position"
        )
    rest: list[Prediction | None] = [None] * (len(targets) - len(answers))
    return Pairs(targets, [*answers, *rest])


def given_targets(answers: Sequence[Prediction]) -> list[Target]:
    """Return the targets that the predictions file itself contains.

    Raises:
        ValueError: If an entry has no references.
    """
    for answer in answers:
        if not answer.references:
            raise ValueError(
                f"{answer.where}: the prediction {answer.id!r} holds no references: name their "
                "file with --references"
            )
    return [Target(answer.id, answer.references, answer.metadata) for answer in answers]


def score_answers(
    metric: TaskMetric, answers: Sequence[Prediction], targets: Sequence[Target]
) -> tuple[TaskScore, Pairs]:
    """Return the score and its pairs, paired as each profile of the metric requires.

    Raises:
        ValueError: If answers and targets cannot be paired, or the metric lacks metadata.
    """
    if not isinstance(metric, ProfiledMetric) or metric.pairing == "id":
        pairs = pair_by_id(answers, targets)
        return pairs.score(metric), pairs
    pairs = pair_by_position(answers, targets)
    published = pairs.score(metric)
    if [answer.id for answer in answers] == [target.id for target in targets]:
        return published, pairs
    if not {answer.id for answer in answers} & {target.id for target in targets}:
        details = published.details | {"pairing": "by position: no prediction has a reference's id"}
        return replace(published, details=details), pairs
    pairs = pair_by_id(answers, targets)
    by_id = pairs.score(metric)
    profiles = by_id.profiles | {
        name: score for name, score in published.profiles.items() if name == "published"
    }
    chosen = profiles[metric.profile]
    return replace(
        by_id, value=chosen.value, per_sample=chosen.per_sample, profiles=profiles
    ), pairs


def run_score(words: Sequence[str]) -> None:
    """Run ``score`` with the arguments after it.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If the command line or a file is malformed.
    """
    parser = ArgumentParser("dmole score", description="Score a file of predictions.")
    parser.add_argument("predictions", type=Path, help="JSON lines of dmole or CoIN")
    rule = parser.add_mutually_exclusive_group(required=True)
    rule.add_argument("--task", help="task of a benchmark, such as coin/Grounding")
    rule.add_argument("--metric", help="name of a metric, such as coin_grounding")
    parser.add_argument("--of", help="name of the task to score, in the predictions of a run")
    parser.add_argument("--references", type=Path, help="test file, where predictions hold none")
    parser.add_argument("--profile", choices=("published", "corrected"), help="of the score")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(list(words))
    name = options.metric or metric_of_task(options.task)
    metric = build_metric(name, cast("Profile | None", options.profile))
    answers = predictions_of(read_predictions(options.predictions), options.of)
    source = options.references
    targets = given_targets(answers) if source is None else read_targets(source)
    score, pairs = score_answers(metric, answers, targets)
    facts = _facts(name, metric, score, pairs)
    show(json_text(facts) if options.json else _lines(facts))


def _facts(name: str, metric: TaskMetric, score: TaskScore, pairs: Pairs) -> dict[str, Any]:
    """Return the results to print."""
    facts: dict[str, Any] = {
        "metric": name.partition(":")[0],
        "n": len(pairs.targets),
        "missing": pairs.missing,
        "unparsable": score.details["unparsable"],
        "ignored": pairs.ignored,
        "score": score.value,
    }
    if isinstance(metric, ProfiledMetric):
        facts["profile"] = metric.profile
        facts["profiles"] = {
            profile: score.profiles[profile].value
            for profile in ("published", "corrected")
            if profile in score.profiles
        }
    shown = ("missing", "unparsable")
    details = {key: value for key, value in score.details.items() if key not in shown}
    return facts | {"details": details}


def _lines(facts: dict[str, Any]) -> str:
    """Return the results as a text table of two columns."""
    rows: list[tuple[str, Any]] = [
        (key, facts[key]) for key in ("metric", "n", "missing", "unparsable")
    ]
    if facts["ignored"]:
        rows.append(("ignored", facts["ignored"]))
    for profile, value in facts.get("profiles", {}).items():
        chosen = "  (the score)" if profile == facts["profile"] else ""
        rows.append((profile, f"{value:.2f}{chosen}"))
    if "profiles" not in facts:
        rows.append(("score", facts["score"]))
    rows += facts["details"].items()
    width = max(len(key) for key, _ in rows) + 2
    return "\n".join(
        f"{key:<{width}}{value:.2f}" if isinstance(value, float) else f"{key:<{width}}{value}"
        for key, value in rows
    )
