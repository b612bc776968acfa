"""Checks that prompts of a base model are what its training texts begin with."""

from __future__ import annotations

from typing import Any

import numpy as np

from dmole.data.rendering import ChatRenderer
from dmole.data.sample import IMAGE_PLACEHOLDER, ArrayImage, Sample, Turn

_QUESTION, _ANSWER = "what color is it?", "red"


def check_prompts(renderer: ChatRenderer, tokenizer: Any) -> str:
    """Render a short conversation and return the token that ends its answer.

    Args:
        renderer: Renders the conversation.
        tokenizer: The tokenizer of its processor.

    Raises:
        ValueError: If the template fails, writes text around an answer, or a prompt is not what
            comes before the answer in training, as text or as tokens.
    """
    sample = _conversation(renderer)
    try:
        trained = renderer.render(sample, generation=False)
        prompt = renderer.render(_without_answer(sample), generation=True)
    except ValueError as error:
        raise ValueError(str(error).removeprefix(f"sample {sample.id!r}: ")) from error
    begun_text = prompt.text + renderer.style.added
    ids = [_tokens(tokenizer, text) for text in (begun_text, trained.text)]
    if ids[1][: len(ids[0])] != ids[0]:
        texts = [tokenizer.convert_ids_to_tokens(row)[-12:] for row in (ids[0], ids[1])]
        raise ValueError(
            f"the tokens of a prompt end in {' '.join(texts[0])!r}, but the tokens of a training "
            f"text end in {' '.join(texts[1])!r}: the tokenizer must not add a token to the end of "
            "a prompt, nor join its last token with the answer"
        )
    end = trained.answers[0].end_token
    if tokenizer.convert_tokens_to_ids(end) not in ids[1]:
        raise ValueError(f"the tokenizer does not keep {end!r}, the end of an answer, as one token")
    return end


def _conversation(renderer: ChatRenderer) -> Sample:
    images = (ArrayImage(np.zeros((1, 1, 3), np.uint8)),) * renderer.style.needs_image
    question = f"{IMAGE_PLACEHOLDER}\n{_QUESTION}" if images else _QUESTION
    return Sample("probe", (Turn("user", question), Turn("assistant", _ANSWER)), images)


def _without_answer(sample: Sample) -> Sample:
    return Sample(sample.id, sample.turns[:-1], sample.images)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    bos = tokenizer.bos_token
    begun = bool(bos) and text.startswith(bos)  # as in the collator: never a second BOS
    ids: list[int] = tokenizer(text, add_special_tokens=not begun)["input_ids"]
    return ids
