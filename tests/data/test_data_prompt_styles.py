"""Prompts of models without a chat template."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import make_backbone, make_image, make_processor

from dmole.data.collate import Collator
from dmole.data.labels import IGNORED
from dmole.data.rendering import ChatRenderer
from dmole.data.sample import Sample, Turn

PICTURE = make_image(0)


@pytest.fixture(scope="module")
def processor() -> Any:
    return make_processor("paligemma")


def sample(*texts: str, images: int = 1) -> Sample:
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts))
    return Sample("x", turns, (PICTURE,) * images)


def test_a_prefix_model_gets_images_question_line_and_answer(processor: Any) -> None:
    renderer = ChatRenderer(processor)
    rendered = renderer.render(sample("what is\n<image> it?"), generation=True)
    assert rendered.text == "<image>what is\n it?"  # the processor adds the line break
    trained = renderer.render(sample("<image>\nwhat?", "red "), generation=False)
    assert trained.text == "<image>what?\nred </s>"
    (answer,) = trained.answers
    assert trained.text[answer.start : answer.end].strip() == "red"


def test_the_answer_is_typed_as_suffix_and_the_prefix_cannot_see_it(processor: Any) -> None:
    batch = Collator(processor)(
        [(sample("<image>a", "red"), "t"), (sample("<image>what?", "a blue one"), "t")],
        generation=False,
    )
    kinds = batch.inputs["token_type_ids"]
    for row in range(2):
        begin = int((batch.labels[row] != IGNORED).nonzero()[0])
        assert not kinds[row, :begin].any()
        assert kinds[row, begin:].all()
    backbone = make_backbone("paligemma")
    changed = {key: value.clone() for key, value in batch.inputs.items()}
    begin = int((batch.labels[0] != IGNORED).nonzero()[0])
    changed["input_ids"][0, begin] += 1
    with torch.no_grad():
        first = backbone.model(**batch.inputs, use_cache=False).logits[0]
        second = backbone.model(**changed, use_cache=False).logits[0]
    assert torch.equal(first[:begin], second[:begin])
    assert not torch.equal(first[begin:], second[begin:])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (sample("what?", "red", images=0), "sample 'x' has no image: this model needs one"),
        (sample("<image>a", "b", "c", "d"), "sample 'x' has 2 questions: this model answers only"),
    ],
)
def test_samples_a_prefix_model_was_not_made_for_are_refused(
    processor: Any, bad: Sample, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Collator(processor)([(sample("<image>q", "a"), "t"), (bad, "t")], generation=False)


def test_a_chat_template_wins_over_the_style_of_the_processor() -> None:
    processor = make_processor("paligemma")
    processor.chat_template = "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
    renderer = ChatRenderer(processor)
    assert not renderer.style.needs_image
    assert renderer.render(sample("q", images=0), generation=True).text == "q"


def test_a_prefix_model_takes_no_system_turn(processor: Any) -> None:
    told = Sample("x", (Turn("system", "brief"), Turn("user", "<image>?")), (PICTURE,))
    with pytest.raises(ValueError, match="sample 'x' has a system turn: this model takes none"):
        ChatRenderer(processor).render(told, generation=True)
