"""How the prompts of models that follow no chat template are written, by processor class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmole.data.sample import IMAGE_PLACEHOLDER, Sample, Turn


class PlainStyle:
    r"""The form of LLaVA-1.5: ``USER: <image>\n question ASSISTANT: answer</s>``.

    A system turn stands before it.
    """

    needs_image = False
    """Whether the model only answers questions about images."""
    single_turn = False
    """Whether the model knows no conversation."""
    added = ""
    """What the processor puts behind every text by itself."""

    def write(
        self, turns: Sequence[Turn], generation: bool, image_token: str, end_token: str
    ) -> str:
        """Return the text of some turns, with the prompt for the next answer if asked."""
        texts = {
            "system": "{text} ",
            "user": "USER: {text} ",
            "assistant": "ASSISTANT: {text}{end}",
        }
        text = "".join(
            texts[turn.role].format(
                text=turn.text.replace(IMAGE_PLACEHOLDER, image_token), end=end_token
            )
            for turn in turns
        )
        return text + "ASSISTANT:" if generation else text

    def check(self, sample: Sample) -> None:
        """Refuse a sample that the model was not made for.

        Raises:
            ValueError: If it has no image, several questions or a system turn, where the model was
                made for others.
        """
        if self.single_turn and sample.turns[0].role == "system":
            raise ValueError(f"sample {sample.id!r} has a system turn: this model takes none")
        if self.needs_image and not sample.images:
            raise ValueError(f"sample {sample.id!r} has no image: this model wants one")
        asked = sum(turn.role == "user" for turn in sample.turns)
        if self.single_turn and asked > 1:
            raise ValueError(
                f"sample {sample.id!r} has {asked} questions: this model answers only one, "
                "make a sample of each"
            )

    def mark(self, inputs: dict[str, Tensor], labels: Tensor, ignored: int) -> None:
        """Tell the model which tokens are its own answer, where it wants to know."""


class PrefixStyle(PlainStyle):
    r"""The form of PaliGemma: images, question, ``\n``, answer.

    The processor puts the begin token behind the images and ends every text with a line break.
    The question is read in both directions, so the model must be told where the answer begins.
    """

    needs_image = True
    single_turn = True
    added = "\n"

    def write(
        self, turns: Sequence[Turn], generation: bool, image_token: str, end_token: str
    ) -> str:
        """Return images and question, and the answer where there is one."""
        text = ""
        for turn in turns:
            if turn.role == "user":
                images = turn.text.count(IMAGE_PLACEHOLDER)
                question = turn.text.replace(IMAGE_PLACEHOLDER, "").strip()
                text += image_token * images + question + "\n"
            else:
                text += turn.text + end_token
        return text

    def mark(self, inputs: dict[str, Tensor], labels: Tensor, ignored: int) -> None:
        """Set ``token_type_ids`` to 1 from the first token of the answer on."""
        answer = (labels != ignored).long().cumsum(dim=1) > 0
        inputs["token_type_ids"] = torch.where(answer, 1, inputs["token_type_ids"])


STYLES: dict[str, PlainStyle] = {"PaliGemmaProcessor": PrefixStyle()}
"""Processors whose models want another form than LLaVA-1.5's."""


def style_of(processor: object) -> PlainStyle:
    """Return the style of a processor that has no chat template."""
    return STYLES.get(type(processor).__name__, PlainStyle())
