"""Renders a chat template so that the text depends on config, data and the template alone.

A template may call ``strftime_now``, which reads the clock. Here such a call fails, or it returns
a date of the config. Filters that draw random numbers are refused.
"""

from __future__ import annotations

import datetime
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dmole.data.sample import IMAGE_PLACEHOLDER
from dmole.messages import one_line

CLOCK = "strftime_now"
"""Function of a chat template that formats the current time."""
_RESERVED = {"messages", CLOCK, "raise_exception"}
_NO_CLOCK = (
    "the chat template writes today's date into the prompt (strftime_now), so answers would differ "
    "between two days: set template_date of the base model, for instance 2026-01-31"
)


@dataclass(frozen=True)
class PromptSettings:
    """How the prompts of a base model are written, beyond its chat template.

    Args:
        style: Name of a prompt style that replaces the chat template, see
            `dmole.data.prompt_styles.NAMED`; None uses the template.
        variables: Variables of the chat template by name, such as ``enable_thinking``.
        date: Day that the template reads as today, ``YYYY-MM-DD``; None refuses a template that
            reads the clock.

    Raises:
        ValueError: If the date is no day.
    """

    style: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None

    def __post_init__(self) -> None:
        """Check the date."""
        if self.date is not None:
            try:
                datetime.date.fromisoformat(self.date)
            except (TypeError, ValueError):
                raise ValueError(
                    f"template_date must be a day such as 2026-01-31, got {self.date!r}"
                ) from None

    def __hash__(self) -> int:
        """Return a hash that equal settings share."""
        return hash(json.dumps(self.to_dict(), sort_keys=True, default=str))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, without those that are not set."""
        settings = {"style": self.style, "variables": dict(self.variables), "date": self.date}
        return {name: value for name, value in settings.items() if value}


def chat_template_of(owner: Any) -> str | None:
    """Return the chat template of a processor or tokenizer as text; None if it has none.

    Raises:
        ValueError: If it has several templates and none is named ``default``.
    """
    template = getattr(owner, "chat_template", None)
    if isinstance(template, Mapping):
        if "default" not in template:
            names = ", ".join(map(str, template))
            raise ValueError(f"none of the chat templates {names} is named default")
        template = template["default"]
    return str(template) if template else None


class ChatTemplate:
    """The chat template of a processor or tokenizer.

    Args:
        owner: Processor or tokenizer with the template.
        settings: Variables and date.

    Attributes:
        source: The template.

    Raises:
        ValueError: If the template draws random numbers or is no template, or a variable or the
            date has no effect on it.
    """

    def __init__(self, owner: Any, settings: PromptSettings) -> None:
        self._owner = owner
        self._variables = dict(settings.variables)
        self.source = chat_template_of(owner) or ""
        tokens = _tokens(self.source)
        names = {text for kind, text in tokens if kind == "name"}
        _check_deterministic(tokens)
        reserved = _RESERVED | inspect.signature(owner.apply_chat_template).parameters.keys()
        for name in self._variables:
            if name in reserved or name not in names:
                reason = "is reserved" if name in reserved else "is not read by the chat template"
                raise ValueError(f"the variable {name!r} of template_variables {reason}")
        if settings.date is not None and CLOCK not in names:
            raise ValueError("template_date has no effect: the chat template does not read a date")
        self._guarded: str | None = None
        if CLOCK in names:
            strings = {text for kind, text in tokens if kind == "string"}
            self._guarded = _clock(strings, settings.date) + self.source

    def render(self, messages: Sequence[Mapping[str, Any]], *, generation: bool) -> str:
        """Return the text of a conversation.

        Args:
            messages: The turns, each with ``role`` and ``content``.
            generation: Whether to end with the generation prompt.

        Raises:
            ValueError: If the template fails or refuses the conversation.
        """
        options = {} if self._guarded is None else {"chat_template": self._guarded}
        try:
            text: str = self._owner.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=generation,
                **options,
                **self._variables,
            )
        except Exception as error:  # a template may raise anything
            raise ValueError(one_line(error)) from error
        return text


def content_parts(text: str) -> list[dict[str, str]]:
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


def _clock(strings: set[str], date: str | None) -> str:
    """Return a macro that takes the place of ``strftime_now`` in a template.

    transformers passes plain values alone to a template, so a date is formatted beforehand, for
    each string of the template that may be a format.
    """
    if date is None:
        body = f"{{{{ raise_exception({json.dumps(_NO_CLOCK)}) }}}}"
    else:
        day = datetime.datetime.fromisoformat(date)
        formats = {text[1:-1] for text in strings if "%" in text}
        dates = json.dumps({text: day.strftime(text) for text in sorted(formats)})
        refused = json.dumps("the chat template formats the date in a way that is not supported")
        body = (
            f"{{% set dates = {dates} %}}{{% if format in dates %}}{{{{ dates[format] }}}}"
            f"{{% else %}}{{{{ raise_exception({refused}) }}}}{{% endif %}}"
        )
    # the sign + keeps a line break that the template begins with
    return f"{{% macro {CLOCK}(format) %}}{body}{{% endmacro +%}}"


def _check_deterministic(tokens: Sequence[tuple[str, str]]) -> None:
    for position, (kind, text) in enumerate(tokens):
        before = tokens[position - 1][1] if position else ""
        filtered = kind == "name" and text == "random" and before in ("|", "filter")
        mapped = kind == "string" and text[1:-1] == "random" and before == "("
        if filtered or mapped or (kind == "name" and text == "lipsum"):
            raise ValueError(
                f"the chat template draws random numbers ({text.strip(chr(34) + chr(39))}), so "
                "prompts would differ between two runs"
            )


def _tokens(source: str) -> list[tuple[str, str]]:
    """Return kind and text of the tokens of a template, without spaces."""
    import jinja2

    try:
        tokens = jinja2.Environment().lex(source)
        return [(kind, text) for _, kind, text in tokens if kind != "whitespace"]
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the chat template is no valid template: {one_line(error)}") from error
