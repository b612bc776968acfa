"""Writes a conversation as the text a model reads and says where in it the answers are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dmole.data.prompt_styles import PlainStyle, style_of
from dmole.data.sample import IMAGE_PLACEHOLDER, Sample, Turn


@dataclass(frozen=True)
class AnswerSpan:
    """Place of one assistant turn in a rendered text, in characters.

    Args:
        start: Where the model begins to write: right behind the generation prompt.
        end: Where the end token begins.
        end_token: The special token that ends the turn.
    """

    start: int
    end: int
    end_token: str


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, images as placeholders, and the answers in it."""

    text: str
    answers: tuple[AnswerSpan, ...]


class ChatRenderer:
    r"""Renders conversations with the processor's chat template.

    Processors without a template get the style of their model, see
    :mod:`dmole.data.prompt_styles`. A template that puts no special token behind an answer would
    teach a model never to stop: there the end-of-sequence token is added.

    Args:
        processor: A transformers processor with a tokenizer.

    Raises:
        ValueError: If the tokenizer has no end-of-sequence token.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self.style = PlainStyle() if self._has_template() else style_of(processor)
        self.image_token: str = getattr(processor, "image_token", IMAGE_PLACEHOLDER)
        if self._tokenizer.eos_token is None:
            raise ValueError("the tokenizer has no eos_token, so an answer has no end")
        added = self._tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in added if token.special}
        special |= set(self._tokenizer.all_special_tokens)
        # the longest first, so that a token that begins like another is recognised
        self._special = sorted(special, key=len, reverse=True)

    def render(self, sample: Sample, *, generation: bool) -> Rendered:
        """Return the text of a sample.

        Args:
            sample: The conversation.
            generation: Whether to end with the prompt for the next answer.

        Raises:
            ValueError: If placeholders and images differ in number, a turn holds the model's
                image token as text, or the template does not keep the answers as they are or
                has no place for a system turn.
        """
        self._check_images(sample)
        self.style.check(sample)
        full = self._whole(sample, generation)
        text, copied, answers = "", 0, []
        for position, turn in enumerate(sample.turns):
            if turn.role == "assistant":
                start, stop = self._span(sample, position, full)
                answer, resume = self._locate(turn.text.strip(), full, start, stop)
                shift = len(text) - copied
                answers.append(
                    AnswerSpan(answer.start + shift, answer.end + shift, answer.end_token)
                )
                text += full[copied : answer.end] + answer.end_token
                copied = resume
        text += full[copied:]
        if generation:  # the answer of a training text stands before what the processor adds
            text = text.removesuffix(self.style.added)
        return Rendered(text, tuple(answers))

    def _whole(self, sample: Sample, generation: bool) -> str:
        """Return the whole text; refuse a template that raises on or leaves out a system turn."""
        first = sample.turns[0]
        if first.role != "system":
            return self._template(sample.turns, generation)
        try:
            full = self._template(sample.turns, generation)
        except Exception as error:  # templates raise what their authors chose
            reason = " ".join(str(error).split())
            raise ValueError(
                f"sample {sample.id!r}: the chat template takes no system turn: {reason}"
            ) from error
        if first.text.strip() not in full:
            raise ValueError(f"sample {sample.id!r}: the chat template leaves out the system turn")
        return full

    def _locate(self, answer: str, full: str, start: int, stop: int) -> tuple[AnswerSpan, int]:
        """Find the end token of the answer in ``full[start:stop]`` and where to go on after it."""
        tail = full.find(answer, start, stop) + len(answer)
        rest = full[tail:stop]
        begin = tail + len(rest) - len(rest.lstrip())
        for token in self._special:
            if full.startswith(token, begin, stop):
                return AnswerSpan(start, begin, token), begin + len(token)
        # none: it takes the place of the space behind what the template wrote
        return AnswerSpan(start, tail + len(rest.rstrip()), self._tokenizer.eos_token), stop

    def _span(self, sample: Sample, position: int, full: str) -> tuple[int, int]:
        """Find the characters of an assistant turn, from its first token to the next turn."""
        before = self._template(sample.turns[:position], generation=True)
        upto = self._template(sample.turns[: position + 1], generation=False)
        start = _common_length(full, before)
        stop = _common_length(full, upto)
        answer = sample.turns[position].text.strip()
        if not answer:
            raise ValueError(f"sample {sample.id!r} has an answer without tokens")
        if stop < len(upto.rstrip()) or answer not in full[start:stop]:
            raise ValueError(
                f"sample {sample.id!r}: the chat template does not keep the answer {answer[:40]!r}"
            )
        return start, stop

    def _check_images(self, sample: Sample) -> None:
        found = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in sample.turns)
        if found != len(sample.images):
            raise ValueError(
                f"sample {sample.id!r} has {len(sample.images)} images and {found} placeholders"
            )
        if self.image_token == IMAGE_PLACEHOLDER:
            return
        if any(self.image_token in turn.text for turn in sample.turns):
            raise ValueError(
                f"sample {sample.id!r} holds {self.image_token!r}, the model's image token, as text"
            )

    def _template(self, turns: tuple[Turn, ...], generation: bool) -> str:
        if getattr(self._processor, "chat_template", None):
            owner: Any = self._processor
            content: Callable[[str], Any] = _parts
        elif getattr(self._tokenizer, "chat_template", None):
            # the template of a language model knows no parts
            owner, content = self._tokenizer, self._inline
        else:
            end_token = self._tokenizer.eos_token
            return self.style.write(turns, generation, self.image_token, end_token)
        messages = [{"role": turn.role, "content": content(turn.text)} for turn in turns]
        text: str = owner.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation
        )
        return text

    def _has_template(self) -> bool:
        owners = (self._processor, self._tokenizer)
        return any(getattr(owner, "chat_template", None) for owner in owners)

    def _inline(self, text: str) -> str:
        return text.replace(IMAGE_PLACEHOLDER, self.image_token)


def _common_length(first: str, second: str) -> int:
    """Return how many characters two texts have in common from their beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((position for position, (a, b) in pairs if a != b), min(len(first), len(second)))


def _parts(text: str) -> list[dict[str, str]]:
    """Split a turn at its placeholders into the content parts of a chat template."""
    parts: list[dict[str, str]] = []
    pieces = text.split(IMAGE_PLACEHOLDER)
    for position, piece in enumerate(pieces):
        if position > 0:
            parts.append({"type": "image"})
            piece = piece.removeprefix("\n")  # templates set their own line break
        if position < len(pieces) - 1:
            piece = piece.removesuffix("\n")
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts or [{"type": "text", "text": ""}]
