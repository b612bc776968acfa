"""Turns samples into the tensors of a batch, with any image-text processor of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dmole.data.batch import Batch
from dmole.data.filler import count_fillers, with_filler
from dmole.data.image_store import ImageStore
from dmole.data.labels import IGNORED, answer_labels
from dmole.data.processing import Processing, lacks_bos
from dmole.data.questions import Questions
from dmole.data.rendering import ChatRenderer
from dmole.data.sample import Sample
from dmole.data.sample_errors import Origin, SampleError, sample_error, task_origin
from dmole.data.templates import PromptSettings
from dmole.messages import one_line

TaskSample = tuple[Sample, str]
"""A sample and the name of its task."""


class Collator:
    """Turns samples into a batch.

    Training batches are padded on the right and carry labels: the loss covers every assistant
    turn and its end token. Generation batches are padded on the left
    and end with the generation prompt.

    Args:
        processor: A transformers processor with an image processor and a fast tokenizer.
        max_length: Maximum number of tokens of a sample, including image tokens; ``None`` sets no
            limit.
        on_too_long: ``error`` rejects longer samples, ``truncate`` cuts the end of the last
            answer. Only answers are cut.
        prompts: How prompts are written, beyond the chat template.
        origin: Returns where a sample of a task comes from, for messages.
        images: Keeps processed images; None processes an image each time.

    Attributes:
        max_length: The limit.
        truncated: Number of samples cut so far, in this process and its data workers.

    Raises:
        ValueError: If the tokenizer lacks a padding or end-of-sequence token or is not a fast one,
            or the images of the processor cannot be kept.
    """

    def __init__(
        self,
        processor: Any,
        max_length: int | None = None,
        on_too_long: Literal["error", "truncate"] = "error",
        prompts: PromptSettings | None = None,
        origin: Origin = task_origin,
        images: ImageStore | None = None,
    ) -> None:
        if on_too_long not in ("error", "truncate"):
            raise ValueError(f"on_too_long must be 'error' or 'truncate', got {on_too_long!r}")
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        tokenizer = processor.tokenizer
        if tokenizer.pad_token is None:
            raise ValueError("the tokenizer has no pad_token; set it, for instance to eos_token")
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} gives no character offsets: use a fast one"
            )
        self._tokenizer = tokenizer
        self._renderer = ChatRenderer(processor, prompts)
        self.max_length = max_length
        self._on_too_long = on_too_long
        self._origin = origin
        self._questions = Questions(tokenizer)
        self._process = Processing(processor, self._renderer, images)
        self._truncated = torch.zeros((), dtype=torch.long).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def truncated(self) -> int:
        """Number of samples cut so far."""
        return int(self._truncated)

    def __call__(
        self, items: Sequence[TaskSample], *, generation: bool, in_step: bool = False
    ) -> Batch:
        """Return the batch of samples.

        Args:
            items: Samples, each with the name of its task.
            generation: Whether the answers are generated rather than learned.
            in_step: Whether a batch without images gets a filler that has one.

        Raises:
            SampleError: If a sample is longer than allowed, has an answer without tokens, has an
                image that cannot be read, or is refused by the chat template or the processor. The
                message names its origin, its id and its images.
        """
        items = with_filler(items, generation=generation) if in_step else items
        try:
            return self._collate(items, generation)
        except Exception as error:  # templates and processors raise any type
            raise self._blame(items, generation, error) from error

    def count_tokens(
        self, items: Sequence[TaskSample], *, generation: bool, most: int | None = None
    ) -> list[int]:
        """Return the number of tokens of each prompt or training sample, without its padding.

        Only the first sample with images goes through the image processor: an image of any other
        sample counts as many tokens as one of its images does.

        Args:
            items: Samples, each with the name of its task.
            generation: Whether prompts are counted rather than training samples.
            most: Maximum number of tokens of a batch, which a single sample must not exceed.

        Raises:
            ValueError: If the chat template or the processor refuses a sample, or it has more
                tokens than a batch may have; names it.
        """
        counts = self._counts(items, generation)
        if self._on_too_long == "truncate" and not generation and self.max_length:
            counts = [min(count, self.max_length) for count in counts]
        for item, count in zip(items, counts, strict=True):
            if most is not None and count > most:
                error = ValueError(f"it has {count} tokens, a batch at most {most}")
                raise sample_error(*item, error, self._origin)
        return counts

    def _counts(self, items: Sequence[TaskSample], generation: bool) -> list[int]:
        texts = [self._text(item, generation) for item in items]
        if not texts:
            return []
        encoded = self._tokenizer(texts, add_special_tokens=lacks_bos(self._tokenizer, texts))
        counts = [len(ids) for ids in encoded["input_ids"]]
        pictured = next((i for i, (sample, _) in enumerate(items) if sample.images), None)
        if pictured is None:
            return counts
        whole = self([items[pictured]], generation=generation).inputs["attention_mask"]
        images = [len(sample.images) for sample, _ in items]
        each = -(-(int(whole.sum()) - counts[pictured]) // images[pictured])  # rounded up
        return [count + each * number for count, number in zip(counts, images, strict=True)]

    def _text(self, item: TaskSample, generation: bool) -> str:
        try:
            return self._renderer.render(item[0], generation=generation).text
        except Exception as error:  # templates raise any type
            raise sample_error(*item, error, self._origin) from error

    def _blame(
        self, items: Sequence[TaskSample], generation: bool, error: Exception
    ) -> SampleError:
        """Return the error of the first sample that fails alone, else that of the batch."""
        if len(items) == 1:
            return sample_error(*items[0], error, self._origin)
        for item in items:
            try:
                self._collate([item], generation)
            except Exception as reason:
                return sample_error(*item, reason, self._origin)
        names = ", ".join(repr(sample.id) for sample, _ in items)
        return SampleError(f"samples {names} fit no common batch: {one_line(error)}")

    def _collate(self, items: Sequence[TaskSample], generation: bool) -> Batch:
        samples = [sample for sample, _ in items]
        rendered = [self._renderer.render(sample, generation=generation) for sample in samples]
        inputs = self._process(samples, rendered, generation=generation)
        offsets = inputs.pop("offset_mapping")
        inputs.pop("labels", None)  # PaliGemma's processor returns labels too
        labels = None
        if not generation:
            labels = answer_labels(inputs, offsets, rendered, self._tokenizer)
            _check_answers(labels, samples)
            self._renderer.style.mark(inputs, labels, IGNORED)
            labels[len(samples) - count_fillers(samples) :] = IGNORED
        inputs, labels = self._limit(inputs, labels, samples)
        return Batch(
            inputs=inputs,
            labels=labels,
            question=self._questions(samples),
            image_counts=torch.tensor([len(sample.images) for sample in samples]),
            sample_ids=[sample.id for sample in samples],
            task_names=[name for _, name in items],
            fillers=count_fillers(samples),
        )

    def _limit(
        self, inputs: dict[str, Tensor], labels: Tensor | None, samples: list[Sample]
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Reject or cut the samples that are longer than allowed."""
        limit, mask = self.max_length, inputs["attention_mask"]
        lengths = mask.sum(dim=1)
        if limit is None or int(lengths.max()) <= limit:
            return inputs, labels
        for row in (lengths > limit).nonzero().flatten().tolist():
            name = f"sample {samples[row].id!r} has {int(lengths[row])} tokens"
            if self._on_too_long == "error" or labels is None:
                raise ValueError(f"{name}, more than max_length {limit}")
            begin = _last_answer_start(labels[row])
            if begin >= limit:
                raise ValueError(f"{name}, {begin} before its last answer: max_length is {limit}")
            self._truncated += 1
        assert labels is not None  # generation batches are rejected above
        cut = {key: _cut(key, value, mask.shape, limit) for key, value in inputs.items()}
        return cut, labels[:, :limit]


def _check_answers(labels: Tensor, samples: list[Sample]) -> None:
    # one label is the end token alone
    for row in ((labels != IGNORED).sum(dim=1) < 2).nonzero().flatten().tolist():
        raise ValueError(f"sample {samples[row].id!r} has an answer without tokens")


def _last_answer_start(labels: Tensor) -> int:
    """Return the position of the first token of the last answer."""
    positions = (labels != IGNORED).nonzero().flatten()
    gaps = (positions.diff() > 1).nonzero().flatten()
    return int(positions[int(gaps[-1]) + 1 if len(gaps) else 0])


def _cut(key: str, value: Tensor, shape: torch.Size, limit: int) -> Tensor:
    """Cut a tensor with one entry per token; image tensors have other shapes."""
    per_token = value.shape[:2] == shape and not key.startswith(("pixel", "image"))
    return value[:, :limit] if per_token else value
