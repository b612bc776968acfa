from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dmole.data.batch import Batch
from dmole.data.collate import Collator
from dmole.data.filler import FILLER_ID
from dmole.data.labels import IGNORED
from dmole.data.rendering import ChatRenderer
from dmole.data.sample import ArrayImage, Sample, Turn

TINY = Path(__file__).parents[2] / "dmole" / "demo" / "weights"


def user(text: str) -> Turn:
    return Turn("user", text)


def answer(text: str) -> Turn:
    return Turn("assistant", text)


@pytest.fixture
def samples(picture: ArrayImage) -> list[Sample]:
    return [
        Sample("one", (user("<image>\nwhat color?"), answer("red")), (picture,)),
        Sample(
            "second turn",
            (
                user("hello"),
                answer("yes, a blue one."),
                user("<image>\nand <image>\n this?"),
                answer("no, ünï."),
            ),
            (picture, picture),
        ),
        Sample("text", (user("just text"), answer("fox"))),
        Sample(
            "between",
            (
                user("<image> a"),
                answer("no"),
                user("<image> b </s> c"),
                answer("a dog </s> x"),
                user("c"),
                answer("z"),
            ),
            (picture, picture),
        ),
        Sample("alike", (user("red? red"), answer("red"), user("red"), answer("red"))),
    ]


def items(samples: list[Sample]) -> list[tuple[Sample, str]]:
    return [(sample, "task") for sample in samples]


def as_test(sample: Sample) -> Sample:
    return replace(sample, turns=sample.turns[:-1])


def labelled_runs(batch: Batch, row: int, tokenizer: Any) -> list[str]:
    """Texts of the stretches of labels, without the space a model writes before an answer."""
    assert batch.labels is not None
    runs: list[list[int]] = [[]]
    for label in batch.labels[row].tolist():
        if label != IGNORED:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run).strip() for run in runs if run]


def check_labels(processor: Any, samples: list[Sample]) -> None:
    collator = Collator(processor)
    tokenizer = processor.tokenizer
    batch = collator(items(samples), generation=False)
    end = ChatRenderer(processor).render(samples[0], generation=False).answers[0].end_token
    assert batch.labels is not None
    for row, sample in enumerate(samples):
        expected = [turn.text + end for turn in sample.turns if turn.role == "assistant"]
        found = labelled_runs(batch, row, tokenizer)
        # the tiny model's end token swallows the spaces around it
        assert [text.replace(" </s>", "</s>") for text in found] == [
            text.replace(" </s>", "</s>") for text in expected
        ]
        real = batch.labels[row] != IGNORED
        assert torch.equal(batch.labels[row][real], batch.inputs["input_ids"][row][real])
        assert bool(batch.inputs["attention_mask"][row][real].all())


def test_labels_are_the_answers_and_their_end_tokens_exactly(
    processor: Any, samples: list[Sample]
) -> None:
    check_labels(processor, samples)


def test_labels_of_a_sample_alone_are_the_same(processor: Any, samples: list[Sample]) -> None:
    for sample in samples:
        check_labels(processor, [sample])


def test_labels_fit_the_tiny_model(samples: list[Sample]) -> None:
    from transformers import AutoProcessor

    check_labels(AutoProcessor.from_pretrained(TINY, backend="pil"), samples)


def test_labels_hold_where_padding_is_the_end_token(
    samples: list[Sample], processors: dict[str, Any]
) -> None:
    tokenizer = processors["llava"].tokenizer
    before = tokenizer.pad_token
    tokenizer.pad_token = tokenizer.eos_token
    try:
        check_labels(processors["llava"], samples)
    finally:
        tokenizer.pad_token = before


def test_prompt_for_generation_is_what_training_saw_before_the_answer(
    processor: Any, samples: list[Sample]
) -> None:
    collator = Collator(processor)
    for sample in samples:
        trained = collator(items([sample]), generation=False)
        prompts = collator(items([as_test(sample)]), generation=True)
        prompt = prompts.inputs["input_ids"][0]
        assert prompts.labels is None
        assert trained.labels is not None
        assert torch.equal(trained.inputs["input_ids"][0, : len(prompt)], prompt)
        assert trained.labels[0, len(prompt)] != IGNORED


def test_padding_is_right_in_training_and_left_in_generation(
    processor: Any, samples: list[Sample]
) -> None:
    collator = Collator(processor)
    trained = collator(items(samples), generation=False).inputs["attention_mask"]
    prompts = collator(items([as_test(s) for s in samples]), generation=True).inputs[
        "attention_mask"
    ]
    assert bool((trained.diff(dim=1) <= 0).all())
    assert bool((prompts.diff(dim=1) >= 0).all())
    assert processor.tokenizer.padding_side == "left"  # the processor is left as it was


def test_batch_tells_images_ids_and_tasks(processor: Any, samples: list[Sample]) -> None:
    pairs = [(sample, f"task{row}") for row, sample in enumerate(samples)]
    batch = Collator(processor)(pairs, generation=False)
    assert len(batch) == 5
    assert batch.image_counts.tolist() == [1, 2, 0, 2, 0]
    assert batch.sample_ids == ["one", "second turn", "text", "between", "alike"]
    assert batch.task_names == ["task0", "task1", "task2", "task3", "task4"]
    image_token = processor.tokenizer.convert_tokens_to_ids("<image>")
    found = (batch.inputs["input_ids"] == image_token).any(dim=1)
    assert found.tolist() == [True, True, False, True, False]
    assert set(batch.inputs) >= {"input_ids", "attention_mask", "pixel_values"}
    assert not set(batch.inputs) & {"labels", "offset_mapping"}


def test_batch_without_images_has_no_pixels(processor: Any, samples: list[Sample]) -> None:
    batch = Collator(processor)(items(samples[2:3]), generation=False)
    assert set(batch.inputs) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("generation", [False, True])
def test_in_step_a_batch_without_images_gets_a_filler_that_nothing_is_learned_from(
    processor: Any, samples: list[Sample], generation: bool
) -> None:
    collator = Collator(processor)
    chosen = [as_test(sample) for sample in samples] if generation else samples
    texts = [item for item in items(chosen) if not item[0].images]
    plain = collator(texts, generation=generation)
    batch = collator(texts, generation=generation, in_step=True)
    assert (plain.fillers, batch.fillers, batch.real) == (0, 1, len(texts))
    assert batch.sample_ids == [*plain.sample_ids, FILLER_ID]
    assert batch.image_counts.tolist() == [0] * len(texts) + [1]
    assert "pixel_values" in batch.inputs
    if not generation:
        assert (batch.labels[-1] == IGNORED).all()
        assert [int((row != IGNORED).sum()) for row in batch.labels[:-1]] == [
            int((row != IGNORED).sum()) for row in plain.labels
        ]
    assert copy.deepcopy(batch).fillers == 1
    pictured = [item for item in items(chosen) if item[0].images]
    assert collator(pictured, generation=generation, in_step=True).fillers == 0


def test_question_is_the_first_user_turn_without_image_or_template(
    processor: Any, samples: list[Sample]
) -> None:
    empty = Sample("empty", (user("<image>"), answer("a")), samples[0].images)
    batch = Collator(processor)(items([*samples[:3], empty]), generation=False)
    texts = processor.tokenizer.batch_decode(batch.question["input_ids"], skip_special_tokens=True)
    assert texts == ["what color?", "hello", "just text", ""]
    mask = batch.question["attention_mask"]
    assert bool((mask.diff(dim=1) <= 0).all())
    assert mask.sum(dim=1).tolist()[-1] == 1  # the begin token alone: never nothing
    assert not bool((batch.question["input_ids"] == 3).any())


def test_begin_token_is_never_doubled(processors: dict[str, Any], samples: list[Sample]) -> None:
    from families import make_processor
    from tokenizers.processors import TemplateProcessing

    for template in ("{{ '<s>' }}", ""):
        processor = make_processor("llava")
        processor.chat_template = template + processor.chat_template
        processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
        batch = Collator(processor)(items(samples[:1]), generation=False)
        assert batch.inputs["input_ids"][0].tolist().count(1) == 1
        assert batch.question["input_ids"][0].tolist().count(1) == 1
        check_labels(processor, samples)


def test_template_of_the_tokenizer_is_used_where_the_processor_has_none(
    samples: list[Sample],
) -> None:
    from families import make_processor

    processor = make_processor("llava_plain")
    processor.tokenizer.chat_template = (
        "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}</s>"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    check_labels(processor, samples)
    batch = Collator(processor)(items([as_test(samples[2])]), generation=True)
    assert processor.tokenizer.decode(batch.inputs["input_ids"][0]) == (
        "[user] just text</s>[assistant]"
    )


def test_a_system_turn_stands_before_the_question(processor: Any, samples: list[Sample]) -> None:
    first = Turn("system", "reply in {one} word.")
    told = [replace(sample, turns=(first, *sample.turns)) for sample in samples]
    check_labels(processor, told)
    text = ChatRenderer(processor).render(as_test(told[0]), generation=True).text
    assert text.index("reply in {one} word.") < text.index("what color?")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('only\nusers') }}"
            "{% endif %}",
            "takes no system turn: only users",
        ),
        (
            "{% for m in messages if m['role'] != 'system' %}{{ m['content'][0]['text'] }}</s>"
            "{% endfor %}",
            "leaves out the system turn",
        ),
    ],
)
def test_a_template_without_a_system_role_is_refused_in_one_line(
    samples: list[Sample], template: str, message: str
) -> None:
    from families import make_processor

    processor = make_processor("llava")
    processor.chat_template = template
    told = replace(samples[2], turns=(Turn("system", "be brief"), *samples[2].turns))
    with pytest.raises(
        ValueError, match=f"^task 'task': sample 'text': the chat template {message}"
    ) as caught:
        Collator(processor)(items([told]), generation=False)
    assert "\n" not in str(caught.value)


def test_template_that_changes_answers_is_refused(samples: list[Sample]) -> None:
    from families import make_processor

    processor = make_processor("llava")
    processor.chat_template = "{% for m in messages %}{{ m['role'] }} {% endfor %}"
    with pytest.raises(ValueError, match="sample 'one': the chat template does not keep"):
        Collator(processor)(items(samples[:1]), generation=False)


def test_longer_sample_is_refused_with_its_id(processor: Any, samples: list[Sample]) -> None:
    with pytest.raises(ValueError, match=r"sample 'one' has \d+ tokens, more than max_length 9"):
        Collator(processor, max_length=9)(items(samples[:1]), generation=False)
    collator = Collator(processor, max_length=9, on_too_long="truncate")
    with pytest.raises(ValueError, match="sample 'one' has"):
        collator(items([as_test(samples[0])]), generation=True)


def test_only_the_end_of_the_last_answer_is_cut(processor: Any, samples: list[Sample]) -> None:
    long = Sample(
        "long", (user("<image>" + " the dog" * 9), answer("the fox " * 20)), samples[0].images
    )
    whole = Collator(processor)(items([samples[2], long]), generation=False)
    assert whole.labels is not None
    begin = int((whole.labels[1] != IGNORED).nonzero()[0])
    collator = Collator(processor, max_length=begin + 3, on_too_long="truncate")
    batch = collator(items([samples[2], long]), generation=False)
    assert batch.labels is not None
    assert collator.truncated == 1
    assert torch.equal(batch.labels, whole.labels[:, : begin + 3])
    for key in ("input_ids", "attention_mask"):
        assert torch.equal(batch.inputs[key], whole.inputs[key][:, : begin + 3])
    assert torch.equal(batch.inputs["pixel_values"], whole.inputs["pixel_values"])
    tight = Collator(processor, max_length=begin, on_too_long="truncate")
    with pytest.raises(ValueError, match=f"sample 'long' has .*, {begin} before its last answer"):
        tight(items([long]), generation=False)


def test_sample_within_the_limit_is_not_cut(processor: Any, samples: list[Sample]) -> None:
    length = Collator(processor)(items(samples[:1]), generation=False).inputs["input_ids"].shape[1]
    collator = Collator(processor, max_length=length, on_too_long="truncate")
    collator(items(samples[:1]), generation=False)
    assert collator.truncated == 0


@pytest.mark.parametrize(
    ("turns", "images", "message"),
    [
        ((user("q"), answer("")), 0, "sample 'x' has an answer without tokens"),
        ((user("q"), answer("a"), user("q"), answer("")), 0, "sample 'x' has an answer without"),
        ((user("<image>"), answer("a")), 0, "sample 'x' has 0 images and 1 placeholders"),
        ((user("q"), answer("a")), 1, "sample 'x' has 1 images and 0 placeholders"),
    ],
)
def test_bad_sample_is_refused_with_its_id(
    processor: Any, picture: ArrayImage, turns: tuple[Turn, ...], images: int, message: str
) -> None:
    sample = Sample("x", turns, (picture,) * images)
    with pytest.raises(ValueError, match=message):
        Collator(processor)(items([sample]), generation=False)


def test_image_token_written_as_text_is_refused(processors: dict[str, Any]) -> None:
    collator = Collator(processors["llava"])
    collator._renderer.image_token = "<|image_pad|>"
    with pytest.raises(ValueError, match=r"sample 'x' holds '<\|image_pad\|>'"):
        collator([(Sample("x", (user("a <|image_pad|>"), answer("b"))), "t")], generation=False)


def test_bad_arguments_are_refused(processors: dict[str, Any]) -> None:
    from families import make_processor

    with pytest.raises(ValueError, match="on_too_long must be 'error' or 'truncate', got 'cut'"):
        Collator(processors["llava"], on_too_long="cut")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_length must be at least 1, got 0"):
        Collator(processors["llava"], max_length=0)
    for key in ("pad_token", "eos_token"):
        processor = make_processor("llava")
        setattr(processor.tokenizer, key, None)
        with pytest.raises(ValueError, match=f"the tokenizer has no {key}"):
            Collator(processor)
