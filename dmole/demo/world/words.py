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
