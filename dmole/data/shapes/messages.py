"""Lists of messages with ``role`` and ``content``: LLaMA-Factory, ms-swift, OpenAI and TRL."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from dmole.data.shapes.chat import Utterance, assemble
from dmole.data.shapes.checks import (
    CHECKED_IN_TURN,
    Role,
    check_turn,
    refuse_history,
    refuse_in_turn,
    refuse_unsupported,
    short,
)
from dmole.data.shapes.parts import read_parts
from dmole.data.shapes.plain import rest_of
from dmole.data.shapes.shape import Conversation

_ROLES: dict[str, Role] = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}


class MessagesShape:
    """Messages whose content is text with placeholders, or a list of parts.

    One shape for both: messages without images are the same in either.
    """

    name = "messages"
    keys = "'messages', a list of turns with 'role' and 'content' (text or a list of parts)"

    def matches(self, item: Mapping[str, Any]) -> bool:
        """Return whether the item has the key ``messages``."""
        return "messages" in item

    def reads(self, item: Mapping[str, Any]) -> Collection[str]:
        """Return the keys of the turns."""
        return ("messages",)

    def read(self, item: Mapping[str, Any]) -> Conversation:
        """Return the conversation of an item.

        Raises:
            ValueError: If the item is malformed or holds what is not supported.
        """
        refuse_unsupported(item, chat=True)
        refuse_history(item)
        utterances = read_messages(item.get("messages"), "messages", 0)
        return assemble(item, utterances, {"messages"})


class CompletionShape:
    """A prompt of messages and a completion of messages, the form of TRL."""

    name = "prompt-completion"
    keys = "'prompt' and 'completion', both lists of turns with 'role' and 'content'"

    def matches(self, item: Mapping[str, Any]) -> bool:
        """Return whether the prompt is a list and something follows it."""
        follows = any(key in item for key in ("completion", "chosen", "rejected"))
        return follows and isinstance(item.get("prompt"), list | tuple)

    def reads(self, item: Mapping[str, Any]) -> Collection[str]:
        """Return the keys of the turns."""
        return ("prompt", "completion")

    def read(self, item: Mapping[str, Any]) -> Conversation:
        """Return the conversation of an item.

        Raises:
            ValueError: If the item is malformed or holds what is not supported.
        """
        refuse_unsupported(item, chat=True)
        refuse_history(item)
        prompt = read_messages(item.get("prompt"), "prompt", 0)
        completion = read_messages(item.get("completion"), "completion", len(prompt))
        return assemble(item, [*prompt, *completion], {"prompt", "completion"})


def read_messages(value: Any, key: str, first: int) -> list[Utterance]:
    """Return the turns of a list of messages.

    Args:
        value: The list.
        key: Its key in messages.
        first: Number of its first turn.

    Raises:
        ValueError: If the value is not a list or is empty, or a message is malformed.
    """
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{key!r} must be a list with at least one turn")
    return [_utterance(entry, position) for position, entry in enumerate(value, first)]


def _utterance(entry: Any, position: int) -> Utterance:
    if not isinstance(entry, Mapping) or "role" not in entry:
        raise ValueError(f"turn {position} must be an object with the keys 'role' and 'content'")
    speaker = entry["role"]
    role = _ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise ValueError(f"turn {position} has the unknown role {short(speaker)}")
    refuse_in_turn(entry, role, position)
    content, rest = entry.get("content"), rest_of(entry, {"role", "content", *CHECKED_IN_TURN})
    if not isinstance(content, list | tuple):
        return Utterance.of_text(check_turn(role, content, position, "content"), rest)
    text, slots, unused = read_parts(content, position)
    turn = check_turn(role, text, position, "content")
    return Utterance(turn, slots, rest | ({"parts": unused} if unused else {}))
