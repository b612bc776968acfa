"""Chat templates that read a clock, draw numbers, or take variables."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from families import make_processor
from families.text import TEMPLATES

from dmole.data.rendering import ChatRenderer
from dmole.data.sample import Sample, Turn
from dmole.data.templates import ChatTemplate, PromptSettings

CHATML = TEMPLATES["qwen2_vl"]
LLAMA = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}"
    "{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}Today: {{ date_string }}\n"
)
GRANITE = '{% macro today() %}{{ strftime_now("%B %d, %Y") }}{% endmacro %}Today: {{ today() }}.\n'
QUESTION = [{"role": "user", "content": [{"type": "text", "text": "why?"}]}]


def with_template(template: str, family: str = "qwen2_vl") -> Any:
    processor = make_processor(family)
    processor.chat_template = template
    return processor


def render(template: str, **settings: Any) -> str:
    template_of = ChatTemplate(with_template(template), PromptSettings(**settings))
    return template_of.render(QUESTION, generation=True)


@pytest.mark.parametrize("head", [LLAMA, GRANITE])
def test_a_template_that_reads_the_clock_is_refused(head: str) -> None:
    with pytest.raises(ValueError, match=r"writes today's date .*: set template_date"):
        render(head + CHATML)


@pytest.mark.parametrize("head", [LLAMA, GRANITE])
@pytest.mark.parametrize("start", ["", "\n", "  \n", "{# a note #}\n"])
def test_a_date_in_the_config_is_read_as_today(head: str, start: str) -> None:
    template = start + head + CHATML
    today = datetime.datetime.now().date().isoformat()
    by_library = with_template(template).apply_chat_template(
        QUESTION, tokenize=False, add_generation_prompt=True
    )
    assert render(template, date=today) == by_library
    assert "03" in render(template, date="2026-01-03") != by_library


def test_a_variable_of_the_template_replaces_the_clock() -> None:
    assert "Today: 1 May 2020\n" in render(LLAMA + CHATML, variables={"date_string": "1 May 2020"})


def test_a_format_that_is_put_together_is_refused_under_a_date() -> None:
    head = "{{ strftime_now('%d' ~ ' %Y') }}"
    with pytest.raises(ValueError, match="formats the date in a way that is not supported"):
        render(head + CHATML, date="2026-01-03")


@pytest.mark.parametrize(
    "head",
    [
        "{{ ['a', 'b'] | random }}",
        "{% filter random %}ab{% endfilter %}",
        "{{ [['a', 'b']] | map('random') | join }}",
        "{{ lipsum(n=1) }}",
    ],
)
def test_a_template_that_draws_random_numbers_is_refused(head: str) -> None:
    with pytest.raises(ValueError, match="the chat template draws random numbers"):
        render(head + CHATML)


def test_the_words_of_a_template_are_no_filters() -> None:
    assert "random" in render("a random word: {{ 'random' }}" + CHATML)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"date": "2026-02-30"},
            "template_date must be a day such as 2026-01-31, got '2026-02-30'",
        ),
        ({"date": "2026-01-03"}, "template_date has no effect: the chat template does not read"),
        ({"variables": {"enable_thinkin": False}}, "'enable_thinkin' .* is not read by the chat"),
        ({"variables": {"messages": []}}, "'messages' of template_variables is reserved"),
        ({"variables": {"tokenize": True}}, "'tokenize' of template_variables is reserved"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(CHATML, **settings)


def test_settings_of_a_template_are_refused_for_a_style() -> None:
    with pytest.raises(ValueError, match="have no effect on a prompt_style"):
        ChatRenderer(make_processor("llava_plain"), PromptSettings(date="2026-01-03"))


def test_one_of_several_templates_must_be_the_default() -> None:
    processor = with_template(CHATML)
    processor.chat_template = {"default": CHATML, "tools": "x"}
    text = ChatTemplate(processor, PromptSettings()).render(QUESTION, generation=True)
    assert text == render(CHATML)
    processor.chat_template = {"tools": "x", "rag": "y"}
    with pytest.raises(ValueError, match="none of the chat templates tools, rag is named default"):
        ChatTemplate(processor, PromptSettings())


def test_a_template_of_several_conversations_names_the_sample_that_it_refuses() -> None:
    head = (
        "{% if messages[0]['content'][0]['text'] == 'no' %}{{ raise_exception('a\nb') }}{% endif %}"
    )
    renderer = ChatRenderer(with_template(head + CHATML))
    with pytest.raises(ValueError, match=r"^sample 'x': a b$"):
        renderer.render(Sample("x", (Turn("user", "no"),)), generation=True)


def test_equal_settings_have_equal_hashes() -> None:
    first, second = (PromptSettings(variables={"a": [1]}, date="2026-01-03") for _ in range(2))
    assert first == second
    assert len({first, second, PromptSettings()}) == 2
    assert first.to_dict() == {"variables": {"a": [1]}, "date": "2026-01-03"}
