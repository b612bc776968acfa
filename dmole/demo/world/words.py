"""What an example is, and the words of the synthetic tasks that the base model does not know."""

from __future__ import annotations

from dataclasses import dataclass

from dmole.demo.world.world import Pixels

PAINTS = {
    "red": "scarlet",
    "green": "emerald",
    "blue": "azure",
    "yellow": "gold",
    "purple": "violet",
    "orange": "amber",
    "black": "ebony",
    "pink": "rose",
    "white": "ivory",
}
MORE_PAINTS = {"brown": "umber", "gray": "ash", "cyan": "aqua"}
"""The words of `PAINTS` for the further colors of the wide world."""
NEW_WORDS = (*MORE_PAINTS.values(), "ink")
"""Words of later tasks that the tokenizer of the tiny model splits."""
SPELLED_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COMPASS = {
    "top": "north",
    "bottom": "south",
    "left": "west",
    "right": "east",
    "middle": "middle",
    "center": "center",
}


@dataclass(frozen=True)
class Example:
    """An image, a question about it and its accepted answers (the first is trained)."""

    pixels: Pixels
    question: str
    answers: tuple[str, ...]
