"""What is refused at loading because training and prompts would differ."""

from __future__ import annotations

from typing import Any

import pytest
from families import FAMILIES, make_model, make_processor
from families.text import TEMPLATES
from tokenizers import processors as post

from dmole.data.prompt_check import check_prompts
from dmole.data.rendering import ChatRenderer
from dmole.data.sample import Sample, Turn
from dmole.data.templates import PromptSettings
from dmole.models import Backbone

ENDS = {
    **dict.fromkeys(("llava", "llava_next", "llava_plain", "paligemma"), "</s>"),
    **dict.fromkeys(("idefics3", "smolvlm"), "<end_of_utterance>"),
    "gemma3": "<end_of_turn>",
    "mllama": "<|eot_id|>",
}
CHATML = TEMPLATES["qwen2_vl"]
THINK = "{% if m['role'] == 'assistant' %}{{ '<think></think>' }}{% endif %}"


def ends_of(processor: Any, **settings: Any) -> str:
    return check_prompts(ChatRenderer(processor, PromptSettings(**settings)), processor.tokenizer)


def thinking(generation: str) -> str:
    """Return a template that writes a thought before an answer, as thinking models have it."""
    return (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}{{ '\n' }}" + THINK +
        "{{ m['content'][0]['text'] }}<|im_end|>{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}" + generation + "{% endif %}"
    )  # fmt: skip


@pytest.mark.parametrize("family", [*FAMILIES, "llava_plain"])
def test_every_family_has_one_end(family: str) -> None:
    assert ends_of(make_processor(family)) == ENDS.get(family, "<|im_end|>")


def test_an_earlier_answer_with_another_end_is_refused() -> None:
    processor = make_processor("qwen2_vl")
    processor.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'][0]['text'] }}"
        "{% if m['role'] == 'assistant' %}{{ '</s>' if loop.last else '<|im_end|>' }}{% endif %}"
        "{{ ' ' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    assert ends_of(processor) == "</s>"
    turns = tuple(Turn(role, "so") for role in ("user", "assistant") * 2)
    with pytest.raises(ValueError, match="sample 'x': the chat template does not keep the answer"):
        ChatRenderer(processor).render(Sample("x", turns), generation=False)


def test_a_thought_that_only_training_texts_have_is_refused() -> None:
    processor = make_processor("qwen2_vl")
    processor.chat_template = thinking("")
    with pytest.raises(ValueError, match="writes '<think></think>' between prompt and answer"):
        ends_of(processor)


def test_a_variable_can_put_the_thought_into_the_prompt() -> None:
    processor = make_processor("qwen2_vl")
    processor.chat_template = thinking("{% if not enable_thinking %}<think></think>{% endif %}")
    assert ends_of(processor, variables={"enable_thinking": False}) == "<|im_end|>"


def test_a_prompt_that_training_texts_do_not_have_is_refused() -> None:
    processor = make_processor("qwen2_vl")
    processor.chat_template = CHATML.replace("{{ 'assistant' + '\n' }}", "assistant: now\n")
    with pytest.raises(ValueError, match=r"generated after .* but learned after .*another prompt"):
        ends_of(processor)


ONEVISION = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
    "{{ '\n' + m['content'][0]['text'] }}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As published: a space follows the role in training only."""
NEXT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'][0]['text'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'][0]['text'] + '<\\\\s> ' }}{% endif %}{% endfor %}"
)
"""As published: the end token is misspelled."""


@pytest.mark.parametrize(
    ("template", "text", "answer"),
    [
        (
            ONEVISION,
            "<|im_start|>user \nwhy?<|im_end|><|im_start|>assistant\nso<|im_end|>"
            "<|im_start|>user \nhow?<|im_end|><|im_start|>assistant\nno<|im_end|>",
            ["so", "no"],
        ),
        (NEXT, "[INST] why? [/INST] so</s>[INST] how? [/INST] no</s>", [" so", " no"]),
    ],
)
def test_training_texts_of_published_templates_begin_with_their_prompts(
    template: str, text: str, answer: list[str]
) -> None:
    processor = make_processor("qwen2_vl")
    processor.chat_template = template
    assert ends_of(processor) in ("<|im_end|>", "</s>")
    turns = tuple(
        Turn(role, text)
        for role, text in zip(("user", "assistant") * 2, ("why?", "so", "how?", "no"), strict=True)
    )
    renderer = ChatRenderer(processor)
    rendered = renderer.render(Sample("x", turns), generation=False)
    assert rendered.text == text
    assert [text[span.start : span.end] for span in rendered.answers] == answer
    for count in (1, 3):
        prompt = renderer.render(Sample("x", turns[:count]), generation=True).text
        assert text.startswith(prompt)


@pytest.mark.parametrize("end", ["###", "<|im_end", " [/A]"])
def test_an_end_that_is_no_special_token_is_refused(end: str) -> None:
    processor = make_processor("qwen2_vl")
    processor.chat_template = CHATML.replace("<|im_end|>", end)
    with pytest.raises(ValueError, match=r"ends an answer with .*, which is not one special token"):
        ends_of(processor)


def test_a_tokenizer_that_ends_prompts_is_refused() -> None:
    processor = make_processor("llava")
    processor.tokenizer.backend_tokenizer.post_processor = post.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    with pytest.raises(ValueError, match=r"the tokens of a prompt end in '.*</s>', but"):
        ends_of(processor)


def test_a_tokenizer_that_splits_the_end_is_refused() -> None:
    processor = make_processor("llava")
    processor.tokenizer.split_special_tokens = True
    with pytest.raises(ValueError, match="does not keep '</s>', the end of an answer, as one"):
        ends_of(processor)


def test_a_tokenizer_that_joins_prompt_and_answer_is_refused() -> None:
    processor = make_processor("llava")
    processor.chat_template = processor.chat_template.replace("'ASSISTANT:'", "'ASSISTANT: '")
    with pytest.raises(ValueError, match=r"tokens of a prompt end in .* Ġ', but .* Ġred"):
        ends_of(processor)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"llava", "paligemma"}))
def test_a_family_without_a_style_of_its_own_needs_its_template(family: str) -> None:
    processor = make_processor(family)
    processor.chat_template = processor.tokenizer.chat_template = None
    kind = type(processor).__name__
    with pytest.raises(ValueError, match=f"its {kind} has no chat template.*set prompt_style"):
        Backbone(make_model(family, make_processor(family)), processor)


def test_a_style_named_in_the_config_takes_the_place_of_a_template() -> None:
    processor = make_processor("qwen2_vl")
    assert ends_of(processor, style="llava") == "</s>"
    with pytest.raises(ValueError, match="no prompt_style 'vicuna', there are llava, paligemma"):
        ends_of(processor, style="vicuna")
