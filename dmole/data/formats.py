"""Turns one item of a data file, of any shape, into a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dmole.data.images import ImageFinder, name_of
from dmole.data.sample import Sample, StoredImage, Turn
from dmole.data.shapes import SHAPES, Conversation, Shape, check_shape
from dmole.data.shapes.chat import read_id
from dmole.data.shapes.recognition import no_shape

Split = Literal["train", "test"]


@dataclass(frozen=True)
class ItemReader:
    """Reads the items of one source.

    Args:
        split: Training samples end with the answer; test samples end with the question and hold
            the answers as references.
        images: Finds the images.
        prompt_suffix: Text put directly after each question.
        shapes: The shapes that items may have; the first matching shape is used.
    """

    split: Split
    images: ImageFinder
    prompt_suffix: str = ""
    shapes: tuple[Shape, ...] = tuple(SHAPES.values())

    def read(self, item: Mapping[str, Any], index: int) -> Sample:
        """Return the sample of an item.

        Args:
            item: An item of one of the shapes.
            index: Position in the source, which becomes the id of an item without one.

        Raises:
            ValueError: If the item is malformed.
            FileNotFoundError: If an image does not exist.
        """
        conversation = self.parse(item)
        names = [name_of(image) for image in conversation.images]
        return self.sample(conversation, [self.images.find(name) for name in names], index)

    def parse(self, item: Mapping[str, Any]) -> Conversation:
        """Return the conversation of an item.

        Raises:
            ValueError: If the item is malformed or of another shape.
        """
        return self.shape_of(item).read(item)

    def sample(
        self, conversation: Conversation, images: Sequence[StoredImage], index: int
    ) -> Sample:
        """Return the sample of a conversation.

        Args:
            conversation: The conversation of the item.
            images: Its images.
            index: Position of the item.
        """
        turns: Sequence[Turn] = conversation.turns
        references: tuple[str, ...] = ()
        if self.split == "test":
            references = conversation.references or (turns[-1].text,)
            turns = turns[:-1]
        return Sample(
            id=str(index) if conversation.id is None else conversation.id,
            turns=self._with_suffix(turns),
            images=tuple(images),
            references=references,
            metadata=conversation.metadata if self.split == "test" else {},
        )

    def shape_of(self, item: Mapping[str, Any]) -> Shape:
        """Return the shape by which an item is read.

        Raises:
            ValueError: If the item has none of the shapes.
        """
        for shape in self.shapes:
            if shape.matches(item):
                return shape
        if len(self.shapes) == 1:
            check_shape(item, self.shapes[0])
        raise ValueError(no_shape(item))

    def _with_suffix(self, turns: Sequence[Turn]) -> tuple[Turn, ...]:
        """Append the suffix to every question for training, to the last one for testing."""
        if not self.prompt_suffix:
            return tuple(turns)
        last = len(turns) - 1
        return tuple(
            Turn(turn.role, turn.text + self.prompt_suffix)
            if turn.role == "user" and (self.split == "train" or position == last)
            else turn
            for position, turn in enumerate(turns)
        )


def sample_id(item: Mapping[str, Any], index: int) -> str:
    """Return the id of the item, or its position if it has none."""
    name = read_id(item)
    return str(index) if name is None else name
