"""Prompt styles of models without a chat template, by name and by processor class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmole.data.sample import IMAGE_PLACEHOLDER, Sample, Turn


class PlainStyle:
    r"""The form of LLaVA-1.5: ``USER: <image>\n question ASSISTANT: answer</s>``.

    A system turn precedes it.
    """

    needs_image = False
    """Whether the model requires an image."""
    single_turn = False
    """Whether the model takes a single question instead of a conversation."""
    added = ""
    """Suffix that the processor appends to every text."""

    def write(
        self, turns: Sequence[Turn], generation: bool, image_token: str, end_token: str
    ) -> str:
        """Return the text of the turns, with the generation prompt if ``generation`` is set."""
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
        """Reject a sample that the model does not support.

        Raises:
            ValueError: If the sample has no image, several questions or a system turn, and the
                model does not support that.
        """
        if self.single_turn and sample.turns[0].role == "system":
            raise ValueError(f"sample {sample.id!r} has a system turn: this model takes none")
        if self.needs_image and not sample.images:
            raise ValueError(f"sample {sample.id!r} has no image: this model needs one")
        questions = sum(turn.role == "user" for turn in sample.turns)
        if self.single_turn and questions > 1:
            raise ValueError(
                f"sample {sample.id!r} has {questions} questions: this model answers only one, "
                "make a sample of each"
            )

    def mark(self, inputs: dict[str, Tensor], labels: Tensor, ignored: int) -> None:
        """Mark the tokens of the answer in the inputs, for models that need it."""


class PrefixStyle(PlainStyle):
    r"""The form of PaliGemma: images, question, ``\n``, answer.

    The processor puts the begin token after the images and ends every text with a line break.
    Attention to the question is bidirectional, so the inputs mark where the answer begins.
    """

    needs_image = True
    single_turn = True
    added = "\n"

    def write(
        self, turns: Sequence[Turn], generation: bool, image_token: str, end_token: str
    ) -> str:
        """Return the images, the question and, if present, the answer."""
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
        """Set ``token_type_ids`` to 1, starting at the first token of the answer."""
        answer = (labels != ignored).long().cumsum(dim=1) > 0
        inputs["token_type_ids"] = torch.where(answer, 1, inputs["token_type_ids"])


NAMED: dict[str, PlainStyle] = {"llava": PlainStyle(), "paligemma": PrefixStyle()}
"""Prompt styles by the name that ``prompt_style`` takes."""

STYLES = {"LlavaProcessor": "llava", "PaliGemmaProcessor": "paligemma"}
"""Style of each processor whose published models have one instead of a chat template."""


def style_named(name: str) -> PlainStyle:
    """Return the style with a name.

    Raises:
        ValueError: If there is none; the message lists all names.
    """
    if name not in NAMED:
        raise ValueError(f"there is no prompt_style {name!r}, there are {', '.join(NAMED)}")
    return NAMED[name]


def style_of(processor: object) -> str:
    """Return the name of the style of a processor that has no chat template.

    Raises:
        ValueError: If the models of the processor have no style of their own.
    """
    kind = type(processor).__name__
    if kind not in STYLES:
        raise ValueError(
            f"its {kind} has no chat template, and the family has no prompt style of its own: put "
            "chat_template.jinja of the published model into the folder, or set prompt_style of "
            f"the base model to {' or '.join(NAMED)}"
        )
    return STYLES[kind]
