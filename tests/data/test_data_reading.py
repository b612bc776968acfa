from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_opening import read_samples
from PIL import Image

from dmole.data.formats import Split
from dmole.data.sample import FileImage, Sample, Turn


def write(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def talk(*texts: str, **keys: Any) -> dict[str, Any]:
    roles = ("human", "gpt")
    turns = [{"from": roles[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"conversations": turns, **keys}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pics").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / "pics" / name)
    return tmp_path


def test_conversations_of_all_kinds_are_read(folder: Path) -> None:
    items = [
        talk("<image>\nwhat?", "red", image="pics/a.png", id="first"),
        talk("hi", "hello", "and <image> now?", "no", image="pics/b.png", question_id=7),
        talk("only text", "fine"),
        talk("which?", "both", image=["pics/a.png", "pics/b.png"]),
    ]
    items[2]["conversations"][0]["from"] = "user"
    items[2]["conversations"][1]["from"] = "assistant"
    samples = read_samples(write(folder / "train.json", items), "train")
    assert [sample.id for sample in samples] == ["first", "7", "2", "3"]
    assert samples[0].turns == (Turn("user", "<image>\nwhat?"), Turn("assistant", "red"))
    assert samples[0].images == (FileImage(folder / "pics" / "a.png"),)
    assert [turn.role for turn in samples[1].turns] == ["user", "assistant"] * 2
    assert samples[1].turns[2].text == "and <image> now?"
    assert samples[2].images == ()
    assert samples[3].turns[0].text == "<image>\n<image>\nwhich?"
    assert all(sample.references == () for sample in samples)


@pytest.mark.parametrize(
    "items",
    [
        [talk("q", "a\u2028b", id=7), talk("<image>\nwhat?", "red", image="pics/a.png")],
        [
            {"question_id": 2, "text": "why?", "answer": "a\u2028b"},
            {"question_id": 3, "text": "what?\n<image>", "answer": "red", "image": "pics/a.png"},
        ],
    ],
)
def test_json_lines_read_as_the_same_samples_in_either_form(
    folder: Path, items: list[dict[str, Any]]
) -> None:
    as_list = read_samples(write(folder / "x.json", items), "test")
    lines = "\n".join(json.dumps(item, ensure_ascii=False) for item in items) + "\n\n"
    assert read_samples(write(folder / "x.jsonl", "\ufeff" + lines), "test") == as_list
    assert as_list[0].references == ("a\u2028b",)


def test_last_answer_of_a_test_conversation_is_the_reference(folder: Path) -> None:
    item = talk("one?", "1", "two?", "2")
    (sample,) = read_samples(write(folder / "x.json", [item]), "test", prompt_suffix=" Be brief.")
    assert sample.turns == (
        Turn("user", "one?"),
        Turn("assistant", "1"),
        Turn("user", "two? Be brief."),
    )
    assert sample.references == ("2",)
    assert sample.prompt == "two? Be brief."


def test_suffix_follows_every_question_of_a_training_sample(folder: Path) -> None:
    item = talk("one?", "1", "two?", "2")
    (sample,) = read_samples(write(folder / "x.json", [item]), "train", prompt_suffix="\nBrief.")
    assert [turn.text for turn in sample.turns] == ["one?\nBrief.", "1", "two?\nBrief.", "2"]


@pytest.mark.parametrize(
    ("keys", "references"),
    [
        ({"answer": "red"}, ("red",)),
        ({"answer": ["red", "crimson"]}, ("red", "crimson")),
        ({"answer_bbox": "[0.1, 0.2, 0.3, 0.4]", "size": [4, 4]}, ("[0.1, 0.2, 0.3, 0.4]",)),
        ({"answer_bbox": [0.1, 0.2, 0.3, 0.4], "size": [4, 4]}, ("[0.1, 0.2, 0.3, 0.4]",)),
    ],
)
def test_question_form_moves_the_placeholder_to_the_front(
    folder: Path, keys: dict[str, Any], references: tuple[str, ...]
) -> None:
    item = {"question_id": 5, "text": "what\n<image>", "image": "a.png", **keys}
    source = write(folder / "x.json", [item])
    (sample,) = read_samples(source, "test", image_root=folder / "pics")
    image = FileImage(folder / "pics" / "a.png")
    assert sample == Sample("5", (Turn("user", "<image>\nwhat"),), (image,), references)


def test_question_form_trains_on_its_first_answer(folder: Path) -> None:
    item = {"question_id": 5, "text": "what?", "answer": ["red", "crimson"]}
    (sample,) = read_samples(write(folder / "x.json", [item]), "train")
    assert sample.turns == (Turn("user", "what?"), Turn("assistant", "red"))


def test_images_are_not_opened(folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no image")
    source = write(folder / "x.json", [talk("q", "a", image="broken.png")])
    (sample,) = read_samples(source, "train")
    with pytest.raises(ValueError, match=r"cannot read image .*broken.png"):
        sample.images[0].load()


@pytest.mark.parametrize("size", [0, 40, 100])
def test_cut_off_image_is_refused_with_its_name(folder: Path, size: int) -> None:
    Image.effect_noise((40, 40), 50).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:size])
    with pytest.raises(ValueError, match=r"cannot read image .*cut.png"):
        FileImage(folder / "cut.png").load()


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"id": "x1"}, r"item 0 \(id 'x1'\): has neither 'conversations' nor 'text'"),
        ({}, r"item 0 \(id '0'\): has neither"),
        ("text", "item 0 is a string, not an object"),
        ({"conversations": []}, "must be a list with at least one turn"),
        ({"conversations": {}}, "must be a list with at least one turn"),
        ({"conversations": ["hi"]}, "turn 0 must be an object with the keys 'from' and 'value'"),
        ({"conversations": [{"from": "human"}]}, "turn 0 must be an object"),
        (
            {"conversations": [{"from": "robot", "value": ""}]},
            "turn 0 has the unknown role 'robot'",
        ),
        ({"conversations": [{"from": ["gpt"], "value": ""}]}, "turn 0 has the unknown role"),
        ({"conversations": [{"from": "human", "value": 3}]}, "turn 0: 'value' must be a string"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "turn 0 has the role 'assistant'"),
        (talk("q"), "the last turn has the role 'user': there is no answer"),
        (talk("q", " \n"), "turn 1: the answer is empty"),
        (talk("q", "a <image>"), "turn 1: an answer cannot hold <image>"),
        (talk("<image> q", "a"), "has 0 images and 1 <image> placeholders"),
        (talk("<image><image>", "a", image="pics/a.png"), "has 1 images and 2 <image>"),
        (talk("<image>", "a", image=["pics/a.png"] * 2), "has 2 images and 1 <image>"),
        (talk("q", "a", image="pics/c.png"), "image .*c.png does not exist"),
        (talk("q", "a", image="pics"), "image .*pics is not a file"),
        (talk("q", "a", image="../a.png"), "must be relative to .* without '..'"),
        (talk("q", "a", image="/etc/hostname"), "'/etc/hostname' must be relative to"),
        (talk("q", "a", image=3), "'image' must be a path or a list of paths, got 3"),
        (talk("q", "a", image=[None]), "'image' must be a path or a list of paths"),
        ({"text": 3, "answer": "a"}, "'text' must be a string, got int"),
        ({"text": "q"}, "has no 'answer'"),
        ({"text": "q", "answer": ""}, "the answer is empty"),
        ({"text": "q", "answer": []}, "the answer is empty"),
        ({"text": "q", "answer": ["", " "]}, "the answer is empty"),
        ({"text": "q", "answer": 3}, "'answer' must be a string or a list of strings, got 3"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_bad_item_is_refused_with_file_and_position(
    folder: Path, item: Any, message: str, split: Split
) -> None:
    source = write(folder / "x.json", [item])
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        read_samples(source, split)
    assert str(caught.value).startswith(f"{source}: item 0")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", {"a": 1, "b": 2}, r"must hold a list of items, but holds an object \(keys 'a'"),
        ("x.json", "null", "must hold a list of items, but holds null"),
        ("x.json", "3", "must hold a list of items, but holds a number"),
        (
            "x.json",
            '[\n {"text": "q", "answer": "a"},\n {"id": }]',
            "broken JSON at line 3 column 9",
        ),
        ("x.json", "", "broken JSON at line 1 column 1"),
        ("x.jsonl", '{"text": "q", "answer": "a"}\n{"text"', "broken JSON at line 2 column 8"),
        ("x.jsonl", "[]", "item 0 is a list, not an object"),
        ("x.json", "[]", "holds no items"),
        ("x.jsonl", "\n", "holds no items"),
        ("x.csv", "a,b", "must end in .json or .jsonl"),
        ("x.json", [talk("q", "a", id=1), talk("q", "a"), talk("q", "a", id="1")], "same id '1'"),
    ],
)
def test_bad_file_is_refused_in_one_line(
    folder: Path, name: str, content: Any, message: str
) -> None:
    source = write(folder / name, content)
    with pytest.raises(ValueError, match=message) as caught:
        read_samples(source, "train")
    assert source in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_that_is_not_text_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"a.png must end in .json"):
        read_samples(str(folder / "pics" / "a.png"), "train")
    (folder / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"x.json: is not UTF-8 text"):
        read_samples(str(folder / "x.json"), "train")


def test_missing_file_is_named(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data file .*none.json does not exist"):
        read_samples(str(folder / "none.json"), "train")


def test_links_may_not_lead_out_of_the_image_root(folder: Path) -> None:
    root = folder / "root"
    root.mkdir()
    (root / "file.png").symlink_to(folder / "pics" / "a.png")
    (root / "folder").symlink_to(folder / "pics")
    for name in ("file.png", "folder/a.png"):
        source = write(folder / "x.json", [talk("q", "a", image=name)])
        with pytest.raises(ValueError, match=f"'{name}' leaves .* by a symbolic link"):
            read_samples(source, "train", image_root=root)


def test_the_image_root_and_links_within_it_may_be_links(folder: Path) -> None:
    (folder / "alias").symlink_to(folder / "pics")
    (folder / "pics" / "c.png").symlink_to(folder / "pics" / "a.png")
    source = write(folder / "x.json", [talk("q", "a", image=["a.png", "c.png"])])
    (sample,) = read_samples(source, "train", image_root=folder / "alias")
    assert sample.images[1].load().size == (4, 4)


def test_synthetic_samples_take_the_suffix() -> None:
    source = "synthetic://count/test?size=3"
    plain = read_samples(source, "test")
    suffixed = read_samples(source, "test", prompt_suffix=" Say it.")
    assert [sample.prompt + " Say it." for sample in plain] == [s.prompt for s in suffixed]


def test_synthetic_test_samples_cannot_be_trained_on() -> None:
    with pytest.raises(ValueError, match="its split has no answers to train on"):
        read_samples("synthetic://count/test?size=2", "train")


def test_synthetic_training_samples_read_for_testing_become_questions_with_their_answer() -> None:
    trained = read_samples("synthetic://count/train?size=3", "train")
    tested = read_samples("synthetic://count/train?size=3", "test")
    assert [sample.turns for sample in tested] == [sample.turns[:-1] for sample in trained]
    assert [sample.references for sample in tested] == [(s.turns[-1].text,) for s in trained]
