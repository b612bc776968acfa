"""Lists of turns with ``from`` and ``value``: LLaVA, and ShareGPT with its further keys."""

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
from dmole.data.shapes.plain import rest_of
from dmole.data.shapes.shape import Conversation

_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


class ConversationsShape:
    """Conversations of LLaVA (``image``) and ShareGPT (``images``, ``system``).

    One shape for both: their items without images are the same.
    """

    name = "conversations"
    keys = "'conversations', a list of turns with 'from' and 'value'"

    def matches(self, item: Mapping[str, Any]) -> bool:
        """Return whether the item has the key ``conversations``."""
        return "conversations" in item

    def reads(self, item: Mapping[str, Any]) -> Collection[str]:
        """Return the keys of the turns."""
        return ("conversations",)

    def read(self, item: Mapping[str, Any]) -> Conversation:
        """Return the conversation of an item.

        Raises:
            ValueError: If the item is malformed or holds what is not supported.
        """
        refuse_unsupported(item, chat=True)
        refuse_history(item)
        turns = item.get("conversations")
        if not isinstance(turns, list | tuple) or not turns:
            raise ValueError("'conversations' must be a list with at least one turn")
        utterances = [_utterance(entry, position) for position, entry in enumerate(turns)]
        return assemble(item, utterances, {"conversations"})


def _utterance(entry: Any, position: int) -> Utterance:
    if not isinstance(entry, Mapping) or not {"from", "value"} <= entry.keys():
        raise ValueError(f"turn {position} must be an object with the keys 'from' and 'value'")
    speaker = entry["from"]
    role = _ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise ValueError(f"turn {position} has the unknown role {short(speaker)}")
    refuse_in_turn(entry, role, position)
    turn = check_turn(role, entry["value"], position, "value")
    return Utterance.of_text(turn, rest_of(entry, {"from", "value", *CHECKED_IN_TURN}))
