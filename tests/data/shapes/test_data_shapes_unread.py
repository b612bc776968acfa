"""No key of an item is dropped in silence: it is read, refused, or named as unread."""

from __future__ import annotations

from typing import Any

import pytest

from dmole.data.prompts import prompt_keys
from dmole.data.shapes import recognise
from dmole.data.shapes.unread import unread_keys

LLAVA = {"conversations": [{"from": "human", "value": "what ?"}, {"from": "gpt", "value": "red"}]}
MESSAGES = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
COMPLETION = {
    "prompt": [{"role": "user", "content": "q"}],
    "completion": [{"role": "assistant", "content": "a"}],
}
QUERY = {"query": "q", "response": "a"}
QUESTION = {"text": "q", "answer": "a"}
SHAPES = [LLAVA, MESSAGES, COMPLETION, QUERY, QUESTION]
IDS = ["conversations", "messages", "completion", "query", "question"]


def unread(item: dict[str, Any], others: tuple[str, ...] = ()) -> list[str]:
    shape = recognise([item])
    return list(unread_keys(item, shape.read(item), shape, others))


@pytest.mark.parametrize("item", SHAPES, ids=IDS)
def test_ids_images_and_system_are_read(item: dict[str, Any]) -> None:
    further = {"id": 1, "question_id": 2, "system": "be brief", "width": 3, "empty": []}
    assert unread(item | further) == []


@pytest.mark.parametrize("item", SHAPES, ids=IDS)
@pytest.mark.parametrize(
    "key", ["instruction", "input", "output", "context", "image_path", "license", "loss_on", "mask"]
)
def test_any_other_key_is_named(item: dict[str, Any], key: str) -> None:
    assert unread(item | {key: "say it in French"}) == [key]
    assert unread(item | {key: "say it in French"}, (key,)) == []
    assert unread(item | {key: None}) == []


@pytest.mark.parametrize("item", SHAPES, ids=IDS)
@pytest.mark.parametrize(
    "key", ["tools", "video", "videos", "audio", "audios", "rejected", "chosen", "loss_mask"]
)
def test_keys_that_change_a_sample_are_refused(item: dict[str, Any], key: str) -> None:
    changed = item | {key: "x.mp4"}
    with pytest.raises(ValueError, match=f"has '{key}', which is not supported"):
        recognise([changed]).read(changed)


@pytest.mark.parametrize("item", SHAPES[:3], ids=IDS[:3])
def test_a_history_beside_a_list_of_turns_is_refused(item: dict[str, Any]) -> None:
    changed = item | {"history": [["before", "then"]]}
    with pytest.raises(ValueError, match="both a list of turns and a 'history'"):
        recognise([changed]).read(changed)


@pytest.mark.parametrize("item", SHAPES[3:], ids=IDS[3:])
def test_a_history_of_a_question_is_read(item: dict[str, Any]) -> None:
    assert unread(item | {"history": [["before", "then"]]}) == []


def test_keys_of_turns_and_parts_are_named() -> None:
    parts = [{"type": "text", "text": "q", "cache_control": {"type": "x"}}]
    turns = [{"role": "user", "content": parts, "name": "Ann"}, MESSAGES["messages"][1]]
    assert unread({"messages": turns}) == ["turns.name", "turns.parts.cache_control"]
    turns = [{**LLAVA["conversations"][0], "emotion": "sad"}, LLAVA["conversations"][1]]
    assert unread({"conversations": turns}) == ["turns.emotion"]


@pytest.mark.parametrize("key", ["mask", "masked", "tool_calls", "video", "reasoning_content"])
def test_keys_that_change_a_turn_are_refused(key: str) -> None:
    turns = [LLAVA["conversations"][0], LLAVA["conversations"][1] | {key: [1]}]
    with pytest.raises(ValueError, match=f"turn 1 has '{key}', which is not supported"):
        recognise([{"conversations": turns}]).read({"conversations": turns})


def test_what_a_question_leaves_out_is_named_and_what_it_says_is_not() -> None:
    assert unread({"text": "q", "question": "another q", "answer": "a"}) == ["question"]
    assert unread({"text": "so: q", "question": "q", "answer": "a"}) == []
    assert unread({"text": "q", "answer": "a", "answers": ["a", "b"]}) == ["answers"]
    assert unread({"text": "q", "answer": "A", "choices": ["cat", "dog"]}) == ["choices"]
    assert unread({"text": "q cat dog", "answer": "A", "choices": ["cat", "dog"]}) == []
    assert unread({"text": "q", "answer": 1, "choices": ["cat", "dog"]}) == []
    assert unread(LLAVA | {"question": "another"}) == ["question"]


def test_objects_are_read_where_they_are_written_into_the_text() -> None:
    objects = {"ref": ["cat"], "bbox": []}
    assert unread({"query": "the <ref-object> ?", "response": "a", "objects": objects}) == []
    assert unread({"text": "the <ref-object> ?", "answer": "a", "objects": objects}) == []
    assert unread({"text": "the cat ?", "answer": "a", "objects": objects}) == ["objects"]
    assert unread(LLAVA | {"objects": [{"name": "cat"}]}) == ["objects"]


def test_the_keys_of_a_prompt_are_read() -> None:
    assert prompt_keys("{context}: {question} {options}") == {"context", "question", "choices"}
    assert prompt_keys(None) == set()
