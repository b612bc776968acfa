"""Examines the files of all tasks and collects the findings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from dmole.benchmarks.sizes import published_sizes, size_mismatch
from dmole.data.formats import Split
from dmole.data.sources.generated import GeneratedSource
from dmole.data.task import Task
from dmole.data.updates import predecessors
from dmole.doctor.base_model import BaseModel, context_length, find_prompt_error
from dmole.doctor.compare import compare_answers, compare_images, compare_texts
from dmole.doctor.findings import Finding, Findings, Level, count_level
from dmole.doctor.images import ImageReport, examine_images
from dmole.doctor.inputs import InputOptions
from dmole.doctor.overlap import AnswerOverlap
from dmole.doctor.pool import run_jobs
from dmole.doctor.references import ReferenceReport, examine_references
from dmole.doctor.source import CheckedSource
from dmole.doctor.texts import TextReport, examine_texts
from dmole.doctor.tokens import TokenLimit, TokenReport, examine_tokens
from dmole.routing.routers import too_few
from dmole.store import splits_of

_ONE_ANSWER = 0.9  # largest share of the most frequent answer without a warning


_LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class CheckOptions:
    """Options of a check.

    Args:
        limit: Maximum number of findings listed per kind and file.
        processes: Number of worker processes; 0 runs the check in this process.
        decode_images: Whether to decode every image. Otherwise the check only tests that images
            exist and compares them by path, and counts the tokens of the texts alone.
        model: The model whose processor the samples are run through; None runs none.
        no_model: Why there is no model, for a finding; None if there need not be one.
        tokens: Limits on the tokens of a sample; the default is the model's context length.
        items: Maximum number of items of a file that are run through the processor, spread evenly
            over it; None runs all.
        router: Name of the router that is fitted to the training samples of each task.
        least_samples: Minimum number of training samples that this router needs.
    """

    limit: int = 20
    processes: int = 0
    decode_images: bool = True
    model: BaseModel | None = None
    no_model: str | None = None
    tokens: TokenLimit = field(default_factory=partial(TokenLimit, None))
    items: int | None = None
    router: str = ""
    least_samples: int = 1

    @property
    def inputs(self) -> InputOptions | None:
        """What samples are run through; None without a model or without decoding images."""
        if self.model is None or not self.decode_images:
            return None
        return InputOptions(self.model, self.tokens, self.items)


@dataclass
class SplitReport:
    """Results for one file: texts, images and, if there are any, tokens and references."""

    texts: TextReport
    images: ImageReport
    tokens: TokenReport | None
    references: ReferenceReport | None = None

    @property
    def findings(self) -> Findings:
        """All findings in the file."""
        findings = Findings(self.texts.findings.limit)
        for part in (self.texts, self.images, self.tokens, self.references):
            if part is not None:
                findings.merge(part.findings)
        return findings


@dataclass
class DataReport:
    """Results of a check of several tasks.

    Args:
        tasks: The tasks.
        splits: Results by task and split, without generated splits.
        generated: Number of samples by task and split, for generated splits.
        options: Options of the check.
        general: Findings that belong to no file.
        overlap: Shares of test answers that are training answers of other tasks.
    """

    tasks: Sequence[Task]
    splits: dict[tuple[str, Split], SplitReport]
    generated: dict[tuple[str, Split], int]
    options: CheckOptions
    general: Findings
    overlap: AnswerOverlap

    def findings(self) -> list[Finding]:
        """Return the stored findings: errors, then warnings, then notes."""
        findings = [
            *self.general,
            *(finding for split in self.splits.values() for finding in split.findings),
        ]
        return sorted(findings, key=lambda finding: _LEVELS.index(finding.level))

    def count(self, level: Level) -> int:
        """Return the number of findings of a level, including those not stored."""
        counts = [split.findings.counts for split in self.splits.values()]
        return count_level([self.general.counts, *counts], level)


def check_tasks(tasks: Sequence[Task], data_root: Path, options: CheckOptions) -> DataReport:
    """Check the files of tasks.

    Args:
        tasks: The tasks.
        data_root: Folder that files and image roots are relative to.
        options: Options of the check.

    Raises:
        OSError: If a worker process dies.
        ValueError: If a task names an unknown benchmark.
    """
    published = {task.name: _published(task) for task in tasks}
    general = Findings(options.limit)
    options = _with_model(options, general)
    root = data_root.expanduser()
    sources = {
        (task.name, split): CheckedSource.of(task, split, root)
        for task in tasks
        for split in splits_of(task)
    }
    generated = {key: s.size for key, s in sources.items() if isinstance(s, GeneratedSource)}
    examined = _examine([s for s in sources.values() if isinstance(s, CheckedSource)], options)
    splits = {(s.texts.source.task.name, s.texts.source.split): s for s in examined}
    for task in tasks:
        pair = splits.get((task.name, "train")), splits.get((task.name, "test"))
        if pair[0] is not None and pair[1] is not None:
            compare_texts(pair[0].texts, pair[1].texts)
            compare_images(pair[0].images, pair[1].images)
        texts = {split.texts.source.split: split.texts for split in pair if split is not None}
        _check_sizes(texts, published[task.name])
        if "train" in texts and texts["train"].complete and texts["train"].items:
            train = texts["train"]
            if message := too_few(train.items, options.router, options.least_samples):
                train.findings.add(train.source.finding("too_few_samples", message))
        if "test" in texts:
            _check_balance(texts["test"])
    texts_of = {key: split.texts for key, split in splits.items()}
    overlap = compare_answers(texts_of, predecessors(tasks))
    return DataReport(tasks, splits, generated, options, general, overlap)


def _published(task: Task) -> dict[str, Any]:
    by_image = task.format == "coco_captions"
    return dict(published_sizes(task.name, task.benchmark, by_image=by_image))


def _with_model(options: CheckOptions, general: Findings) -> CheckOptions:
    """Load the processor before the processes start; the default limit is the model's context."""
    unchecked = "neither the processor nor lengths and references are checked"
    if options.model is None:
        if options.no_model is not None:
            general.add(Finding("no_tokens", f"{unchecked}: {options.no_model}"))
        return options
    try:
        if (message := find_prompt_error(options.model)) is not None:
            general.add(Finding("prompts", message))
            return replace(options, model=None)
        context = context_length(options.model)
    except ValueError as error:
        general.add(Finding("no_tokens", f"{unchecked}: {error}"))
        return replace(options, model=None)
    length = context if options.tokens.length is None else options.tokens.length
    return replace(options, tokens=replace(options.tokens, length=length, context=context))


def _examine(sources: Sequence[CheckedSource], options: CheckOptions) -> list[SplitReport]:
    """Examine files in parallel, each in several parts if there are enough processes."""
    parts = max(1, math.ceil(options.processes / max(1, len(sources))))
    jobs = [(source, job) for source in sources for job in _jobs(source, options, parts)]
    jobs.sort(key=lambda job: -job[0].size)  # largest first, so that no large one starts last
    results = run_jobs([job for _, job in jobs], options.processes)
    return [
        _merge_results([r for (s, _), r in zip(jobs, results, strict=True) if s == source])
        for source in sources
    ]


def _jobs(source: CheckedSource, options: CheckOptions, parts: int) -> Iterator[Any]:
    """Yield the passes over a file."""
    limit, decode = options.limit, options.decode_images
    yield partial(examine_texts, source, limit)
    if source.split == "test":
        yield partial(examine_references, source, limit, source.task.metric, options.model)
    for part in ((number, parts) for number in range(parts)):
        yield partial(examine_images, source, limit, part, decode, options.inputs)
        if options.model is not None and options.inputs is None:
            yield partial(examine_tokens, source, limit, part, options.model, options.tokens)


def _merge_results(results: list[Any]) -> SplitReport:
    """Return the report of a file from the results of its passes."""
    flat = [part for r in results for part in (r if isinstance(r, tuple) else (r,))]
    (texts,) = [result for result in flat if isinstance(result, TextReport)]
    images = [result for result in flat if isinstance(result, ImageReport)]
    tokens = [result for result in flat if isinstance(result, TokenReport)]
    references = [result for result in flat if isinstance(result, ReferenceReport)]
    for image_part in images[1:]:
        images[0].merge(image_part)
    for token_part in tokens[1:]:
        tokens[0].merge(token_part)
    return SplitReport(
        texts, images[0], tokens[0] if tokens else None, references[0] if references else None
    )


def _check_sizes(texts: dict[Split, TextReport], published: dict[str, Any]) -> None:
    sizes = {split: report.items for split, report in texts.items() if report.complete}
    for split, expected in size_mismatch(sizes, published).items():
        report = texts[split]
        message = f"has {report.items} items; published: {expected}"
        report.findings.add(report.source.finding("split_size", message))


def _check_balance(test: TextReport) -> None:
    for answer, count in test.answers.most_common(1):
        share = count / test.answers.total
        if share > _ONE_ANSWER and test.answers.total > 1:
            message = f"{share:.1%} of the answers are {answer!r}"
            test.findings.add(test.source.finding("one_answer", message))
