"""Runs samples through the collator of ``fit``: template, processor, labels and lengths."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from dmole.data.collate import Collator
from dmole.data.rendering import ChatRenderer
from dmole.data.sample import Sample
from dmole.doctor.base_model import BaseModel, load_processor
from dmole.doctor.findings import Findings
from dmole.doctor.source import CheckedSource
from dmole.doctor.tokens import TokenLimit, TokenReport
from dmole.messages import one_line


@dataclass(frozen=True)
class InputOptions:
    """What the samples are run through.

    Args:
        model: The model whose processor makes the inputs.
        limit: Limits on the tokens of a sample.
        most: Maximum number of items of a file; None runs all of them.
    """

    model: BaseModel
    limit: TokenLimit
    most: int | None = None


@dataclass(frozen=True)
class DecodedImage:
    """An image that is decoded already."""

    picture: Image.Image

    def load(self) -> Image.Image:
        """Return the image in mode RGB."""
        return self.picture


class InputCheck:
    """Makes the inputs of single samples and reports those that ``fit`` would refuse.

    Args:
        source: The file of the samples.
        keep: Maximum number of findings stored per kind.
        options: The processor and the limits.

    Attributes:
        report: Findings and lengths, image tokens included.
    """

    def __init__(self, source: CheckedSource, keep: int, options: InputOptions) -> None:
        processor, limit = load_processor(options.model), options.limit
        self.report = TokenReport(source, Findings(keep))
        self._limit = limit
        self._generation = source.split == "test"
        prompts = options.model.prompts
        self._renderer = ChatRenderer(processor, prompts)
        self._measuring = Collator(processor, prompts=prompts)
        self._cut = limit.cut and not self._generation
        mode: Any = "truncate" if limit.cut else "error"
        self._limiting = Collator(processor, limit.length, mode, prompts)

    def run(self, sample: Sample, images: Iterable[Image.Image], index: int) -> None:
        """Make the input of a sample as ``fit`` does, alone in its batch.

        Args:
            sample: The sample.
            images: Its images in mode RGB.
            index: Position of its item.
        """
        sample = replace(sample, images=tuple(map(DecodedImage, images)))
        item = [(sample, self.report.source.task.name)]
        try:
            batch = self._measuring(item, generation=self._generation)
        except ValueError as error:
            self._add(self._kind(sample), error, index, sample)
            return
        length = batch.inputs["attention_mask"].shape[1]
        self.report.lengths[length] += 1
        bound, context = self._limit.length, self._limit.context
        if bound is not None and length > bound:
            try:
                self._limiting(item, generation=self._generation)
            except ValueError as error:
                self._add("too_long", error, index, sample)
            else:
                self._say("will_be_cut", f"has {length} tokens, more than {bound}", index, sample)
        elif self._generation and context is not None:
            answer = self.report.source.task.max_new_tokens
            if length + answer > context:
                message = (
                    f"its prompt of {length} tokens and max_new_tokens {answer} exceed the context "
                    f"of {context}"
                )
                self._say("beyond_context", message, index, sample)

    def _kind(self, sample: Sample) -> str:
        try:
            self._renderer.render(sample, generation=self._generation)
        except Exception:  # a template may raise anything
            return "chat_template"
        return "refused_sample"

    def _add(self, kind: str, error: ValueError, index: int, sample: Sample) -> None:
        text, name = one_line(error.__cause__ or error), f"sample {sample.id!r}"
        self._say(kind, text.removeprefix(f"{name}: ").removeprefix(f"{name} "), index, sample)

    def _say(self, kind: str, text: str, index: int, sample: Sample) -> None:
        self.report.findings.add(self.report.source.finding(kind, text, index, sample.id))


def spread(index: int, count: int, most: int | None) -> bool:
    """Return whether an item is one of at most ``most`` items, spread evenly over a file.

    Args:
        index: Position of the item, below ``count``.
        count: Number of items.
        most: Number of items to choose; None chooses all.

    Example:
        >>> [index for index in range(10) if spread(index, 10, 3)]
        [0, 4, 7]
    """
    return most is None or most >= count or index * most % count < most
