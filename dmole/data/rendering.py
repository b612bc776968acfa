"""Renders a conversation as the text a model reads and locates the answers in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dmole.data.prompt_styles import PlainStyle, style_of
from dmole.data.sample import IMAGE_PLACEHOLDER, Sample, Turn


@dataclass(frozen=True)
class AnswerSpan:
    """Position of one assistant turn in a rendered text, in characters.

    Args:
        start: Start of the generated text, directly after the generation prompt.
        end: Start of the end token.
        end_token: The special token that ends the turn.
    """

    start: int
    end: int
    end_token: str


@dataclass(frozen=True)
class Rendered:
    """A conversation as text with image placeholders, and the positions of its answers."""

    text: str
    answers: tuple[AnswerSpan, ...]


class ChatRenderer:
    r"""Renders conversations with the processor's chat template.

    For a processor without a template, the style of its model is used; see
    :mod:`dmole.data.prompt_styles`. If the template puts no special token after an answer, the
    end-of-sequence token is added; otherwise the model would never learn to stop.

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
        # longest first, so that a token is not mistaken for its prefix
        self._special = sorted(special, key=len, reverse=True)

    def render(self, sample: Sample, *, generation: bool) -> Rendered:
        """Return the rendered text of a sample.

        Args:
            sample: The conversation.
            generation: Whether to end with the generation prompt.

        Raises:
            ValueError: If placeholders and images differ in number, a turn holds the model's
                image token as text, or the template changes an answer or supports no system
                turn.
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
        if generation:  # in a training text the processor's suffix follows the answer
            text = text.removesuffix(self.style.added)
        return Rendered(text, tuple(answers))

    def _whole(self, sample: Sample, generation: bool) -> str:
        """Return the whole text; reject a template that refuses or drops a system turn."""
        first = sample.turns[0]
        if first.role != "system":
            return self._template(sample.turns, generation)
        try:
            full = self._template(sample.turns, generation)
        except Exception as error:  # a template may raise anything
            reason = " ".join(str(error).split())
            raise ValueError(
                f"sample {sample.id!r}: the chat template takes no system turn: {reason}"
            ) from error
        if first.text.strip() not in full:
            raise ValueError(f"sample {sample.id!r}: the chat template leaves out the system turn")
        return full

    def _locate(self, answer: str, full: str, start: int, stop: int) -> tuple[AnswerSpan, int]:
        """Locate the answer's end token in ``full[start:stop]`` and the position after it."""
        tail = full.find(answer, start, stop) + len(answer)
        rest = full[tail:stop]
        begin = tail + len(rest) - len(rest.lstrip())
        for token in self._special:
            if full.startswith(token, begin, stop):
                return AnswerSpan(start, begin, token), begin + len(token)
        # no end token: the added one replaces the space after the rendered answer
        return AnswerSpan(start, tail + len(rest.rstrip()), self._tokenizer.eos_token), stop

    def _span(self, sample: Sample, position: int, full: str) -> tuple[int, int]:
        """Return the characters of an assistant turn, from its first token to the next turn."""
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
        count = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in sample.turns)
        if count != len(sample.images):
            raise ValueError(
                f"sample {sample.id!r} has {len(sample.images)} images and {count} placeholders"
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
            # the template of a language model takes text, not parts
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
    """Return the length of the common prefix of two texts."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((position for position, (a, b) in pairs if a != b), min(len(first), len(second)))


def _parts(text: str) -> list[dict[str, str]]:
    """Split a turn at its placeholders into the content parts of a chat template."""
    parts: list[dict[str, str]] = []
    pieces = text.split(IMAGE_PLACEHOLDER)
    for position, piece in enumerate(pieces):
        if position > 0:
            parts.append({"type": "image"})
            piece = piece.removeprefix("\n")  # templates add a line break themselves
        if position < len(pieces) - 1:
            piece = piece.removesuffix("\n")
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts or [{"type": "text", "text": ""}]
