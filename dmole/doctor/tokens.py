"""Counts the tokens of samples from their texts alone, without decoding images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from dmole.data.rendering import ChatRenderer
from dmole.data.sample import Sample
from dmole.doctor.base_model import BaseModel, load_processor
from dmole.doctor.findings import Findings
from dmole.doctor.source import CheckedSource, Tick, TolerantReader

_BATCH = 256  # samples tokenised at a time


@dataclass
class TokenReport:
    """Token lengths of the samples of a part of a file.

    Args:
        source: The file.
        findings: The findings.
        lengths: Number of samples by token length.
    """

    source: CheckedSource
    findings: Findings
    lengths: Counter[int] = field(default_factory=Counter)

    def merge(self, other: TokenReport) -> None:
        """Add another part of the same file."""
        self.findings.merge(other.findings)
        self.lengths.update(other.lengths)


@dataclass(frozen=True)
class TokenLimit:
    """Limits on the tokens of a sample.

    Args:
        length: Maximum number of tokens of a sample; None sets no limit.
        cut: Whether the answers of longer training samples are cut. A prompt that is too long is
            always an error.
        context: Maximum number of tokens of the base model, None if its config does not state it.
    """

    length: int | None
    cut: bool = False
    context: int | None = None


def examine_tokens(
    source: CheckedSource,
    keep: int,
    part: tuple[int, int],
    model: BaseModel,
    limit: TokenLimit,
    *,
    tick: Tick | None = None,
) -> TokenReport:
    """Count the tokens of the samples of a part of a file.

    The count covers the whole conversation in the model's chat template, with one placeholder per
    image. It is a lower bound of the model's input length.

    Args:
        source: The file.
        keep: Maximum number of findings stored per kind.
        part: Number of the part, from 0, and the number of parts.
        model: The model whose processor tokenizes the texts.
        limit: Maximum length of a sample.
        tick: Progress callback.
    """
    report = TokenReport(source, Findings(keep))
    processor = load_processor(model)
    rendered = _rendered(report, ChatRenderer(processor, model.prompts), part, tick)
    cut = limit.cut and source.split == "train"
    while batch := list(islice(rendered, _BATCH)):
        lengths = _lengths(processor.tokenizer, [text for _, _, text in batch])
        for (index, sample, _), length in zip(batch, lengths, strict=True):
            report.lengths[length] += 1
            if limit.length is not None and length > limit.length:
                message = f"has at least {length} tokens, more than {limit.length}"
                kind = "will_be_cut" if cut else "too_long"
                report.findings.add(source.finding(kind, message, index, sample.id))
    return report


def _rendered(
    report: TokenReport, renderer: ChatRenderer, part: tuple[int, int], tick: Tick | None
) -> Iterator[tuple[int, Sample, str]]:
    source, reader = report.source, TolerantReader(report.source)
    number, parts = part
    for index, item in source.valid_items(tick):
        if index % parts != number:
            continue
        sample = reader.examine(item, index).sample
        if sample is None:
            continue  # reported by the pass over the texts
        try:
            text = renderer.render(sample, generation=source.split == "test").text
        except Exception as error:  # a template may raise anything
            finding = source.finding("chat_template", str(error), index, sample.id)
            report.findings.add(finding)
            continue
        yield index, sample, text


def _lengths(tokenizer: Any, texts: list[str]) -> Iterable[int]:
    bos = tokenizer.bos_token
    whole = bool(bos) and texts[0].startswith(bos)  # as in training: never a second BOS
    ids = tokenizer(texts, add_special_tokens=not whole, return_attention_mask=False, verbose=False)
    return map(len, ids["input_ids"])
