"""Finds references that no answer of the model can equal, by asking tokenizer and metric.

A reference is encoded and decoded as a generated answer is: cut at the first end token and at
``max_new_tokens``, without special tokens. The metric then scores the result. Where it scores less
than the reference itself, no answer with this reference's text can be generated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dmole.benchmarks.registry import build_metric
from dmole.data.prompt_check import check_prompts
from dmole.data.rendering import ChatRenderer
from dmole.data.templates import PromptSettings
from dmole.doctor.base_model import BaseModel, load_processor
from dmole.doctor.findings import Findings
from dmole.doctor.source import CheckedSource, Tick, TolerantReader
from dmole.messages import one_line, shortened
from dmole.metrics import TaskMetric
from dmole.models.processors import decode_answers

_TOLERANCE = 1e-6  # of scores in percent, which are sums of floats
_BATCH = 512  # references tokenized at a time
_SHOWN = 60  # characters of a reference in a message


@dataclass
class ReferenceReport:
    """Findings about the references of a file.

    Args:
        findings: The findings.
    """

    findings: Findings


@dataclass(frozen=True)
class Row:
    """A test item: its position, id, accepted answers and metadata."""

    index: int
    id: str
    references: tuple[str, ...]
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """The answer that is nearest to a reference among those that can be generated.

    Args:
        text: Its text.
        reason: Why it differs from the reference; empty if it does not.
    """

    text: str
    reason: str = ""


@dataclass
class Generator:
    """Turns references into the answers that a model can generate.

    Args:
        processor: The processor of the base model.
        max_new_tokens: Maximum number of tokens of an answer.
        ends: Ids of the tokens that end an answer.
    """

    processor: Any
    max_new_tokens: int
    ends: Collection[int]
    _known: dict[str, Answer] = field(init=False, default_factory=dict)

    def learn(self, references: Iterable[str]) -> None:
        """Compute the answers to references."""
        new = list(dict.fromkeys(text for text in references if text not in self._known))
        for start in range(0, len(new), _BATCH):
            texts = new[start : start + _BATCH]
            encoded = self.processor.tokenizer(
                [text.strip() for text in texts], add_special_tokens=False, verbose=False
            )["input_ids"]
            kept = [self._generated(ids) for ids in encoded]
            decoded = decode_answers(self.processor, kept)
            for text, ids, short, answer in zip(texts, encoded, kept, decoded, strict=True):
                self._known[text] = self._answer(text, ids, short, answer)

    def answer(self, reference: str) -> Answer:
        """Return the answer to a reference that is learned."""
        return self._known[reference]

    def _generated(self, ids: list[int]) -> list[int]:
        end = next((at for at, token in enumerate(ids) if token in self.ends), len(ids))
        return ids[: min(end, self.max_new_tokens)]

    def _answer(self, text: str, ids: list[int], kept: list[int], answer: str) -> Answer:
        if answer == text:
            return Answer(text)
        if answer == text.strip():
            return Answer(answer, "begins or ends with a space, which is cut from an answer")
        cut = len(kept) < len(ids)
        if cut and len(kept) == self.max_new_tokens:
            return Answer(answer, f"has {len(ids)} tokens, more than max_new_tokens {len(kept)}")
        if cut:
            token = self.processor.tokenizer.convert_ids_to_tokens(ids[len(kept)])
            return Answer(answer, f"holds {token!r}, which ends an answer")
        return Answer(answer, f"is decoded as {_quoted(answer)}")


def end_tokens(processor: Any, prompts: PromptSettings) -> frozenset[int]:
    """Return the ids of the tokens that end an answer: by the chat template and by the tokenizer.

    Raises:
        ValueError: If the prompts of the model cannot be written.
    """
    tokenizer = processor.tokenizer
    learned = check_prompts(ChatRenderer(processor, prompts), tokenizer)
    return frozenset((tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(learned)))


def examine_references(
    source: CheckedSource,
    keep: int,
    metric: str | TaskMetric,
    model: BaseModel | None,
    *,
    tick: Tick | None = None,
) -> ReferenceReport:
    """Report the test items whose references no answer can equal, or that the metric refuses.

    Args:
        source: The file of the test items.
        keep: Maximum number of findings stored per kind.
        metric: The metric of the task.
        model: The model whose tokenizer decodes the answers; None checks the metric alone.
        tick: Progress callback.
    """
    report = ReferenceReport(Findings(keep))
    rows = _rows(source, tick)
    try:
        rule = build_metric(metric)
    except ValueError as error:
        report.findings.add(source.finding("metric", str(error)))
        return report
    rows = _accepted(report, source, rule, rows)
    if not rows:
        return report
    generator = None
    if model is not None:
        processor = load_processor(model)
        ends = end_tokens(processor, model.prompts)
        generator = Generator(processor, source.task.max_new_tokens, ends)
        generator.learn(text for row in rows for text in row.references)
    own, made = _best_scores(rule, rows, generator)
    for row, full, best in zip(rows, own, made, strict=True):
        if best < full - _TOLERANCE:
            assert generator is not None
            text = _unreachable(row, generator, best, full)
        elif full <= 0:
            text = f"the metric gives 0 to its own reference {_quoted(row.references[0])}"
        else:
            continue
        report.findings.add(source.finding("unreachable_reference", text, row.index, row.id))
    return report


def _rows(source: CheckedSource, tick: Tick | None) -> list[Row]:
    reader, rows = TolerantReader(source), []
    for index, item in source.valid_items(tick):
        sample = reader.examine(item, index).sample
        if sample is not None:  # the pass over the texts reports malformed items
            rows.append(Row(index, sample.id, sample.references, sample.metadata))
    return rows


def _accepted(
    report: ReferenceReport, source: CheckedSource, metric: TaskMetric, rows: list[Row]
) -> list[Row]:
    """Return the rows that the metric can score; report the others."""
    try:
        if rows:
            _score(metric, rows, [row.references[0] for row in rows])
        return rows
    except Exception:  # a metric of the user may raise anything
        kept = []
    for row in rows:
        try:
            _score(metric, [row], [row.references[0]])
        except Exception as error:
            text = f"the metric refuses it: {one_line(error)}"
            report.findings.add(source.finding("metric", text, row.index, row.id))
        else:
            kept.append(row)
    return kept


def _best_scores(
    metric: TaskMetric, rows: Sequence[Row], generator: Generator | None
) -> tuple[list[float], list[float]]:
    """Return the best score of each row's references, as written and as generated, in percent."""
    own, made = [0.0] * len(rows), [0.0] * len(rows)
    differs = [
        generator is not None and any(generator.answer(text).reason for text in row.references)
        for row in rows
    ]
    for number in range(max(len(row.references) for row in rows)):
        open_rows = (
            number < len(row.references) and (differs[i] or own[i] <= 0)
            for i, row in enumerate(rows)
        )
        if number and not any(open_rows):
            break
        texts = [row.references[min(number, len(row.references) - 1)] for row in rows]
        written = _score(metric, rows, texts)
        answers = texts if generator is None else [generator.answer(text).text for text in texts]
        generated = written if answers == texts else _score(metric, rows, answers)
        own = list(map(max, own, written))
        made = list(map(max, made, generated))
    return own, made


def _score(metric: TaskMetric, rows: Sequence[Row], answers: Sequence[str]) -> list[float]:
    references = [row.references for row in rows]
    return metric.score(answers, references, [row.metadata for row in rows]).per_sample


def _unreachable(row: Row, generator: Generator, best: float, full: float) -> str:
    text = next(text for text in row.references if generator.answer(text).reason)
    reason = generator.answer(text).reason
    return f"its reference {_quoted(text)} {reason}: at most {best:g} of {full:g} percent"


def _quoted(text: str) -> str:
    return repr(shortened(text, _SHOWN))
