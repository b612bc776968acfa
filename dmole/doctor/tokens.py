"""Measures how many text tokens samples have, without decoding an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from typing import Any

from dmole.data.rendering import ChatRenderer
from dmole.data.sample import Sample
from dmole.doctor.findings import Findings
from dmole.doctor.source import CheckedSource, Tick, TolerantReader
from dmole.messages import first_line

_BATCH = 256  # samples tokenised at a time


@dataclass(frozen=True)
class BaseModel:
    """Whose processor makes the tokens.

    Args:
        source: Folder or hub name.
        revision: Commit, branch or tag on the hub.
        trust_remote_code: Run code that the model's folder brings along.
    """

    source: str
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of transformers' loaders."""
        revision = {} if self.revision is None else {"revision": self.revision}
        return {"trust_remote_code": self.trust_remote_code, **revision}


@dataclass
class TokenReport:
    """How long the samples of a part of a file are.

    Args:
        source: The file.
        findings: What is wrong.
        lengths: How many samples have how many tokens.
    """

    source: CheckedSource
    findings: Findings
    lengths: Counter[int] = field(default_factory=Counter)

    def merge(self, other: TokenReport) -> None:
        """Take in another part of the same file."""
        self.findings.merge(other.findings)
        self.lengths.update(other.lengths)


@cache
def load_processor(model: BaseModel) -> Any:
    """Return the processor of a model; a forked process finds it loaded.

    Raises:
        ValueError: If it cannot be loaded or has no end-of-sequence token; names the model.
    """
    from dmole.models import processors

    try:
        processor = processors.load_processor(model.source, **model.options)
        ChatRenderer(processor)
    except (OSError, ValueError, ImportError, AttributeError) as error:
        prefix = f"cannot load the processor of {model.source!r}: "
        raise ValueError(prefix + first_line(error).removeprefix(prefix)) from error
    return processor


def context_length(model: BaseModel) -> int | None:
    """Return the most tokens a model was made for; None where its config does not say.

    Raises:
        ValueError: If the config cannot be loaded; names the model.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model.source, **model.options)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"cannot load the config of {model.source!r}: {first_line(error)}"
        ) from error
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if length is None else int(length)


@dataclass(frozen=True)
class TokenLimit:
    """Most tokens of a sample, None for no limit, and whether longer answers are cut.

    Only those of training samples are: a prompt that is too long is always refused.
    """

    length: int | None
    cut: bool = False


def examine_tokens(
    source: CheckedSource,
    keep: int,
    part: tuple[int, int],
    model: BaseModel,
    limit: TokenLimit,
    *,
    tick: Tick | None = None,
) -> TokenReport:
    """Return how long the samples of a part of a file are.

    Counted are the tokens of the whole conversation in the model's chat template, each image as
    the one placeholder it is in the text: a lower bound of what the model reads.

    Args:
        source: The file.
        keep: Most findings kept of a kind.
        part: Number of the part, from 0, and how many parts there are.
        model: Whose tokens they are.
        limit: What is too long.
        tick: Is told of progress.
    """
    report = TokenReport(source, Findings(keep))
    processor = load_processor(model)
    rendered = _rendered(report, ChatRenderer(processor), part, tick)
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
        except Exception as error:  # templates raise what their authors chose
            finding = source.finding("chat_template", str(error), index, sample.id)
            report.findings.add(finding)
            continue
        yield index, sample, text


def _lengths(tokenizer: Any, texts: list[str]) -> Iterable[int]:
    bos = tokenizer.bos_token
    whole = bool(bos) and texts[0].startswith(bos)  # as in training: never a second one
    ids = tokenizer(texts, add_special_tokens=not whole, return_attention_mask=False, verbose=False)
    return map(len, ids["input_ids"])
