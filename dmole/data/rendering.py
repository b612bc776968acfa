"""Renders a conversation as the text a model reads and locates the answers in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dmole.data.bounded_cache import BoundedCache
from dmole.data.prompt_styles import PlainStyle, style_named, style_of
from dmole.data.sample import IMAGE_PLACEHOLDER, Sample, Turn
from dmole.data.templates import (
    ChatTemplate,
    PromptSettings,
    chat_template_of,
    content_parts,
)

_KEPT = 16 * 2**20
"""Characters of conversations and rendered texts that a renderer keeps."""


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
    :mod:`dmole.data.prompt_styles`. If the template puts nothing after an answer, the
    end-of-sequence token is added; otherwise the model would never learn to stop.

    A renderer keeps what it rendered last, so a conversation that returns in a later epoch or
    evaluation is not rendered again.

    Args:
        processor: A transformers processor with a tokenizer.
        settings: Style, variables of the template, date.

    Attributes:
        style: The prompt style.
        style_name: Its name; None for a chat template.
        template: The chat template; None for a style.

    Raises:
        ValueError: If the tokenizer has no end-of-sequence token, the processor has neither a
            chat template nor a style, or the settings do not fit the template.
    """

    def __init__(self, processor: Any, settings: PromptSettings | None = None) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        settings = settings or PromptSettings()
        owners = (processor, self._tokenizer)
        owner = next((owner for owner in owners if chat_template_of(owner)), None)
        self.style_name = settings.style
        if owner is None and settings.style is None:
            self.style_name = style_of(processor)
        self.template: ChatTemplate | None = None
        if self.style_name is None:
            self.template = ChatTemplate(owner, settings)
        elif settings.variables or settings.date:
            raise ValueError(
                "template_variables and template_date have no effect on a prompt_style: "
                "they need a chat template"
            )
        # the template of a language model takes text, not parts
        self._takes_parts = owner is processor
        self.style = style_named(self.style_name) if self.style_name else PlainStyle()
        self.image_token: str = getattr(processor, "image_token", IMAGE_PLACEHOLDER)
        if self._tokenizer.eos_token is None:
            raise ValueError("the tokenizer has no eos_token, so an answer has no end")
        added = self._tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in added if token.special}
        special |= set(self._tokenizer.all_special_tokens)
        # longest first, so that a token is not mistaken for its prefix
        self._special = sorted(special, key=len, reverse=True)
        # a text depends on the turns and the number of images
        self._kept: BoundedCache[tuple[tuple[Turn, ...], int, bool], Rendered]
        self._kept = BoundedCache(_KEPT)

    def render(self, sample: Sample, *, generation: bool) -> Rendered:
        """Return the rendered text of a sample.

        Args:
            sample: The conversation.
            generation: Whether to end with the generation prompt.

        Raises:
            ValueError: If placeholders and images differ in number, a turn holds the model's
                image token as text, or the template fails, supports no system turn, changes an
                answer, or writes text around it.
        """
        key = (sample.turns, len(sample.images), generation)
        rendered = self._kept.get(key)
        if rendered is None:
            rendered = self._render(sample, generation)
            size = len(rendered.text) + sum(len(turn.text) for turn in sample.turns)
            self._kept.put(key, rendered, size)
        return rendered

    def _render(self, sample: Sample, generation: bool) -> Rendered:
        self._check_images(sample)
        self.style.check(sample)
        full = self._whole(sample, generation)
        text, copied, answers = "", 0, []
        for position, turn in enumerate(sample.turns):
            if turn.role == "assistant":
                start, stop, space = self._span(sample, position, full, generation)
                answer = turn.text.strip()
                try:
                    end, token, resume = self._end(answer, full, start, stop)
                except ValueError as error:
                    raise ValueError(f"sample {sample.id!r}: {error}") from error
                text += full[copied:start] + space
                begin = full.find(answer, start) if space else start
                span = AnswerSpan(len(text), len(text) + end - begin, token)
                answers.append(span)
                text += full[begin:end] + token
                copied = resume
        text += full[copied:]
        if generation:  # in a training text the processor's suffix follows the answer
            text = text.removesuffix(self.style.added)
        return Rendered(text, tuple(answers))

    def _whole(self, sample: Sample, generation: bool) -> str:
        """Return the whole text; reject a template that fails or drops a system turn."""
        first = sample.turns[0]
        try:
            full = self._template(sample.turns, generation)
        except ValueError as error:
            reason = f"sample {sample.id!r}: {error}"
            if first.role == "system" and self._renders(sample.turns[1:], generation):
                reason = f"sample {sample.id!r}: the chat template takes no system turn: {error}"
            raise ValueError(reason) from error
        if first.role == "system" and first.text.strip() not in full:
            raise ValueError(f"sample {sample.id!r}: the chat template leaves out the system turn")
        return full

    def _renders(self, turns: tuple[Turn, ...], generation: bool) -> bool:
        try:
            self._template(turns, generation)
        except ValueError:
            return False
        return True

    def _end(self, answer: str, full: str, start: int, stop: int) -> tuple[int, str, int]:
        """Return where an answer in ``full[start:stop]`` ends, its end token, and what follows."""
        begin = full.find(answer, start, stop)
        if lead := full[start:begin].strip():
            raise ValueError(
                f"the chat template writes {lead!r} between prompt and answer, so it would be "
                "learned as part of each answer: set template_variables that put it into the prompt"
            )
        tail = begin + len(answer)
        rest = full[tail:stop]
        begin = tail + len(rest) - len(rest.lstrip())
        for token in self._special:
            if full.startswith(token, begin, stop):
                return begin, token, begin + len(token)
        eos: str = self._tokenizer.eos_token
        # published templates of LLaVA-NeXT write the end as <\s>
        if rest.strip() not in ("", eos.replace("/", "\\")):
            raise ValueError(
                f"the chat template ends an answer with {rest.strip()!r}, which is not one special "
                "token of the tokenizer: the model would not learn where to stop"
            )
        # no end token: the added one replaces what follows the answer
        return tail, eos, stop

    def _span(
        self, sample: Sample, position: int, full: str, generation: bool
    ) -> tuple[int, int, str]:
        """Return the characters of an assistant turn, from its first token to the next turn.

        Also return the space at the end of the prompt that replaces the space in ``full``; empty
        if they are equal. Published templates of LLaVA-OneVision differ in it.
        """
        before = self._template(sample.turns[:position], generation=True)
        upto = full  # nothing follows the last turn, except a generation prompt
        if generation or position < len(sample.turns) - 1:
            upto = self._template(sample.turns[: position + 1], generation=False)
        start = _common_length(full, before)
        stop = _common_length(full, upto)
        answer = sample.turns[position].text.strip()
        if not answer:
            raise ValueError(f"sample {sample.id!r} has an answer without tokens")
        space = before[start:]
        if space.strip() or (space and full[start : full.find(answer, start)].strip()):
            raise ValueError(
                f"sample {sample.id!r}: an answer is generated after {space[:40]!r}, but "
                f"learned after {full[start:][:40]!r}: the chat template writes another prompt in "
                "training; set template_variables under which both are equal"
            )
        if stop < len(upto.rstrip()) or answer not in full[start:stop]:
            raise ValueError(
                f"sample {sample.id!r}: the chat template does not keep the answer {answer[:40]!r}"
            )
        return start, stop, space

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
        if self.template is None:
            end_token = self._tokenizer.eos_token
            return self.style.write(turns, generation, self.image_token, end_token)
        content: Any = content_parts if self._takes_parts else self._inline
        messages = [{"role": turn.role, "content": content(turn.text)} for turn in turns]
        return self.template.render(messages, generation=generation)

    def _inline(self, text: str) -> str:
        return text.replace(IMAGE_PLACEHOLDER, self.image_token)


def _common_length(first: str, second: str) -> int:
    """Return the length of the common prefix of two texts."""
    if first.startswith(second):
        return len(second)
    pairs = enumerate(zip(first, second, strict=False))
    return next((position for position, (a, b) in pairs if a != b), min(len(first), len(second)))
