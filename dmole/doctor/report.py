"""Formats the report of a check as text and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from dmole.data.formats import Split
from dmole.data.source import address_of
from dmole.data.task import Task
from dmole.doctor.check import DataReport, SplitReport
from dmole.doctor.findings import LEVELS, Finding
from dmole.doctor.overlap import AnswerOverlap
from dmole.messages import one_line
from dmole.store import splits_of

FORMAT = 1
_MOST_FREQUENT = 10  # answers in the JSON report
_IN_TABLE = 3  # answers in the table
_WIDEST = 24  # characters of an answer in the table
_QUANTILES = {"median": 0.5, "p95": 0.95, "p99": 0.99}


def as_json(report: DataReport) -> dict[str, Any]:
    """Return the whole report as JSON-serializable values."""
    return {
        "format": FORMAT,
        "errors": report.count("error"),
        "warnings": report.count("warning"),
        "images_decoded": report.options.decode_images,
        "token_limit": report.options.tokens.length,
        "token_lengths_include_images": report.options.inputs is not None,
        "tasks": [
            {
                "name": task.name,
                "splits": {split: _split_json(report, task, split) for split in splits_of(task)},
            }
            for task in report.tasks
        ],
        "answer_overlap": _overlap_json(report.overlap),
        "findings": [{"level": f.level} | vars(f) for f in report.findings()],
    }


def _overlap_json(overlap: AnswerOverlap) -> dict[str, Any]:
    """Return the shares by task, and by task and other task; None where nothing was compared."""
    return {
        "of_task": {task: overlap.of_task.get(task) for task in overlap.tasks},
        "by_pair": {
            task: {
                other: overlap.by_pair.get((task, other))
                for other in overlap.tasks
                if other != task
            }
            for task in overlap.tasks
        },
    }


def _split_json(report: DataReport, task: Task, split: Split) -> dict[str, Any]:
    result = report.splits.get((task.name, split))
    if result is None:
        size = report.generated[task.name, split]
        return {"file": address_of(task, split), "generated": True, "items": size}
    answers = result.texts.answers
    return {
        "file": one_line(result.texts.source.address),
        "generated": False,
        "source": result.texts.source.kind,
        "shape": result.texts.shape,
        "items": result.texts.items,
        "complete": result.texts.complete,
        "images": {"named": result.texts.images, "files": result.images.files},
        "answers": {
            "total": answers.total,
            "distinct": answers.distinct,
            "exact": answers.exact,
            "most_frequent": [
                {"answer": one_line(answer), "count": count, "share": count / answers.total}
                for answer, count in answers.most_common(_MOST_FREQUENT)
            ],
        },
        "tokens": _tokens_json(result, report.options.tokens.length),
        "counts": dict(_ordered(result.findings.counts)),
    }


def _tokens_json(result: SplitReport, limit: int | None) -> dict[str, Any] | None:
    if result.tokens is None or not result.tokens.lengths:
        return None
    lengths = result.tokens.lengths
    total = lengths.total()
    return {
        "samples": total,
        "min": min(lengths),
        "mean": sum(length * n for length, n in lengths.items()) / total,
        **{name: quantile(lengths, share) for name, share in _QUANTILES.items()},
        "max": max(lengths),
        "over_limit": sum(n for length, n in lengths.items() if limit and length > limit),
        "histogram": [
            {"from": low, "to": high, "samples": n} for low, high, n in histogram(lengths, limit)
        ],
    }


def quantile(lengths: Counter[int], share: float) -> int:
    """Return the smallest length that at least the given share of the samples do not exceed."""
    target, seen = share * lengths.total(), 0
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= target:
            break
    return length


def histogram(lengths: Counter[int], limit: int | None = None) -> list[tuple[int, int, int]]:
    """Return bins of doubling width as (from, to, samples); a bin also ends at the limit.

    Example:
        >>> histogram(Counter({3: 1, 17: 2, 40: 1}), limit=20)
        [(1, 16, 1), (17, 20, 2), (21, 32, 0), (33, 64, 1)]
    """
    ends = [16]
    while ends[-1] < max(lengths):
        ends.append(2 * ends[-1])
    if limit is not None and limit < ends[-1]:
        ends = sorted({*ends, limit})
    bins, low = [], 1
    for high in ends:
        bins.append((low, high, sum(n for length, n in lengths.items() if low <= length <= high)))
        low = high + 1
    return bins


def as_text(report: DataReport) -> str:
    """Return the report as a table of the files and a list of findings, one per line."""
    rows = [_row(report, task, split) for task in report.tasks for split in splits_of(task)]
    rows.insert(0, ("task", "split", "shape", "items", "images", "tokens", "most frequent answers"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]
    lines += ["", *_histograms(report), *_overlaps(report.overlap)]
    lines += [_line(finding) for finding in report.findings()]
    lines += _not_listed(report)
    errors, warnings = report.count("error"), report.count("warning")
    return "\n".join([*lines, f"{_plural(errors, 'error')}, {_plural(warnings, 'warning')}"])


def _row(report: DataReport, task: Task, split: Split) -> tuple[str, ...]:
    result = report.splits.get((task.name, split))
    if result is None:
        size = report.generated[task.name, split]
        return task.name, split, "-", str(size), "-", "-", "generated, nothing to check"
    answers, tokens = result.texts.answers, _tokens_json(result, None)
    frequent = ", ".join(
        f"{_short(answer)} {count / answers.total:.1%}"
        for answer, count in answers.most_common(_IN_TABLE)
    )
    lengths = f"{tokens['min']}-{tokens['max']}, median {tokens['median']}" if tokens else "-"
    return (
        task.name,
        split,
        _shape(result),
        str(result.texts.items) + ("" if result.texts.complete else "+"),
        str(result.images.files),
        lengths,
        frequent or "-",
    )


def _shape(result: SplitReport) -> str:
    """Return the shape of the items and the kind of their source."""
    shape, kind = result.texts.shape, result.texts.source.kind
    return " in ".join(word for word in (shape, kind) if word) or "-"


def _histograms(report: DataReport) -> Iterator[str]:
    """Yield one line per file with its histogram of token lengths."""
    limit = report.options.tokens.length
    counted = [key for key, split in report.splits.items() if split.tokens and split.tokens.lengths]
    if not counted:
        return
    images = "image tokens included" if report.options.inputs else "an image counts as one token"
    yield f"samples by tokens ({images}; the limit is {limit}):"
    for task, split in counted:
        tokens = report.splits[task, split].tokens
        assert tokens is not None
        bins = [f"<={high}: {n}" for _, high, n in histogram(tokens.lengths, limit) if n]
        yield f"  {task} {split}  {', '.join(bins)}"
    yield ""


def _overlaps(overlap: AnswerOverlap) -> Iterator[str]:
    """Yield one line per task: how many of its test answers the other tasks train."""
    if not overlap.of_task:
        return
    yield "test answers that are training answers of other tasks (columns: the other tasks):"
    width = max(map(len, overlap.tasks))
    numbers = "".join(f"{number:>7}" for number in range(1, len(overlap.tasks) + 1))
    yield f"  {'':>2} {'':{width}}{numbers}    any"
    for number, task in enumerate(overlap.tasks, start=1):
        if task in overlap.of_task:
            shares = [overlap.by_pair.get((task, other)) for other in overlap.tasks]
            cells = "".join("      -" if share is None else f"{share:7.1%}" for share in shares)
            yield f"  {number:>2} {task:{width}}{cells}{overlap.of_task[task]:7.1%}"
    yield ""


def _line(finding: Finding) -> str:
    subject = " ".join(part for part in (finding.task, finding.split) if part)
    words = [f"{finding.level} {finding.kind}"] + ([subject] if subject else [])
    if finding.file is not None:
        words.append(finding.file)
    if finding.item is not None:
        words.append(f"item {finding.item} (id {finding.id!r})")
    return ": ".join([*words, finding.message])


def _not_listed(report: DataReport) -> Iterator[str]:
    for (task, split), result in report.splits.items():
        kept = Counter(finding.kind for finding in result.findings)
        for kind, n in _ordered(result.findings.counts):
            if n > kept[kind]:
                yield f"{LEVELS[kind]} {kind}: {task} {split}: {n - kept[kind]} more not listed"


def _ordered(counts: Counter[str]) -> list[tuple[str, int]]:
    return [(kind, counts[kind]) for kind in LEVELS if counts[kind]]


def _short(answer: str) -> str:
    text = one_line(answer)
    return repr(text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}...")


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
