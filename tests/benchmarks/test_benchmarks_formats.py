"""Each layout on small files of its own, whole and broken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dmole.benchmarks.registry import LAYOUTS
from dmole.data import Task
from dmole.data.items import index_by
from dmole.data.sample import Sample
from dmole.data.source import open_source
from dmole.store import SampleStore


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "sub/a.png", "sub/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), "red").save(tmp_path / name)
    return tmp_path


def write(root: Path, name: str, content: Any) -> str:
    lines = name.endswith(".jsonl") or isinstance(content, str)
    text = content if isinstance(content, str) else json.dumps(content)
    if lines and not isinstance(content, str):
        text = "\n".join(json.dumps(row) for row in content)
    (root / name).write_text(text, encoding="utf-8")
    return name


def read(root: Path, form: str, content: Any, **options: Any) -> list[Sample]:
    """Read test items of a format; further files are given as ``side={name: content}``."""
    side = {
        key: write(root, f"{key}.json", value) for key, value in options.pop("side", {}).items()
    }
    name = options.pop("file", "test.json")
    task = Task("t", train="x", test=write(root, name, content), format=form, side_files=side)
    return open_source(replace(task, **options), "test", root)


def ask(name: Any, image: str | None = "a.png", **keys: Any) -> dict[str, Any]:
    return {"question_id": name, "text": "<image>\nwhat?", "image": image} | keys


def talk(name: Any, answer: str = "red", **keys: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": "a.png", "conversations": turns} | keys


def error_of(root: Path, form: str, content: Any, **options: Any) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read(root, form, content, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- CoIN and its side files -------------------------------------------------------------------


def test_repeated_ids_of_a_published_file_get_a_number(root: Path) -> None:
    samples = read(root, "coin", [ask(7, answer="x"), ask(7, answer="y"), ask("7", answer="z")])
    assert [sample.id for sample in samples] == ["7", "7#2", "7#3"]


def test_repeated_ids_of_a_custom_file_are_refused(root: Path) -> None:
    assert "same id '7'" in error_of(root, "auto", [ask(7, answer="x"), ask(7, answer="y")])


def test_a_grounding_item_keeps_box_and_size(root: Path) -> None:
    (sample,) = read(root, "coin", [ask(1, answer_bbox=[0.1, 0.2, 0.3, 0.4], size=[640, 480])])
    assert sample.references == ("[0.1, 0.2, 0.3, 0.4]",)
    assert sample.metadata["size"] == [640, 480]


PROBLEMS = {"5": {"choices": ["yes", "no"], "answer": 1}, "6": {"choices": ["x"], "answer": 0}}


@pytest.mark.parametrize("item", [ask(5), talk("5", "A")], ids=["question", "conversation"])
def test_a_scienceqa_answer_is_the_letter_of_its_problem(root: Path, item: dict[str, Any]) -> None:
    (sample,) = read(root, "scienceqa", [item], side={"problems": PROBLEMS})
    assert sample.references == ("B",)
    assert sample.metadata["choices"] == ["yes", "no"]
    assert sample.prompt == "what?"


@pytest.mark.parametrize(
    ("items", "side", "message"),
    [
        ([ask(9)], {"problems": PROBLEMS}, "item 0 (id '9'): its id is not in"),
        ([ask(5, question_id=None)], {"problems": PROBLEMS}, "has no 'question_id'"),
        (
            [ask(5)],
            {"problems": {"5": {"choices": ["a"], "answer": 1}}},
            "answer 1 is not an index",
        ),
        ([ask(5)], {"problems": {"5": {"choices": ["a"], "answer": True}}}, "answer True"),
        ([ask(5)], {"problems": {"5": 3}}, "item 0 (id '5')"),
        ([ask(5)], {"problems": []}, "problems.json: must hold an object, but holds a list"),
        ([ask(5)], {"problems": "{"}, "problems.json: broken JSON at line 1"),
        ([ask(5)], {}, "format 'scienceqa' needs the side file 'problems'"),
        ([ask(5)], {"problems": PROBLEMS, "x": {}}, "knows no side file 'x', only problems"),
        (
            [ask(5)],
            {"problems": PROBLEMS, "splits": {"test": ["5", "6"]}},
            "lacks 1 of the 2 test questions of",
        ),
        ([ask(5)], {"problems": PROBLEMS, "splits": {"val": []}}, "has no list 'test'"),
        ([talk(5, conversations=[])], {"problems": PROBLEMS}, "must be one question"),
    ],
)
def test_an_error_of_scienceqa_is_one_line(
    root: Path, items: list[Any], side: dict[str, Any], message: str
) -> None:
    assert message in error_of(root, "scienceqa", items, side=side)


def test_ten_human_answers_are_kept_blanks_included(root: Path) -> None:
    ten = ["red"] * 8 + ["", "blue"]
    side = {"annotations": {"data": [{"question_id": 3, "answers": ten}]}}
    (sample,) = read(root, "textvqa", [ask("3", answer="red")], side=side)
    assert list(sample.references) == ten


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({"data": []}, "item 0 (id '3'): '3' is not in"),
        ({"data": [{"question_id": 3}]}, "'3' has no answer in"),
        ({"data": [{"answers": ["x"]}]}, "entry 0 has no 'question_id'"),
        ({"answers": []}, "'data' must be a list of objects"),
        ({"data": [{"question_id": 3, "answers": ["", " "]}]}, "the answer is empty"),
    ],
)
def test_an_error_of_textvqa_is_one_line(root: Path, annotations: Any, message: str) -> None:
    assert message in error_of(root, "textvqa", [ask(3)], side={"annotations": annotations})


def test_gqa_takes_its_answers_and_leaves_out_what_is_not_balanced(root: Path) -> None:
    entries = {"1": {"answer": "yes", "isBalanced": True}, "2": {"answer": "no"}}
    entries["3"] = {"answer": "no", "isBalanced": False}
    items = [ask(1, answer="wrong"), ask(2), ask(3)]
    samples = read(root, "gqa", items, side={"questions": entries})
    assert [(s.id, s.references) for s in samples] == [("1", ("yes",)), ("2", ("no",))]


@pytest.mark.parametrize(
    "annotations",
    [
        {"annotations": [{"question_id": 1, "answers": [{"answer": "x"}, {"answer": "y"}]}]},
        [{"image": "a.png", "question": "?", "answers": [{"answer": "x"}, {"answer": "y"}]}],
    ],
    ids=["by question", "by image"],
)
def test_vizwiz_answers_are_found_in_both_forms(root: Path, annotations: Any) -> None:
    (sample,) = read(root, "vizwiz", [ask(1, "sub/a.png")], side={"annotations": annotations})
    assert sample.references == ("x", "y")


def test_vizwiz_annotations_of_neither_form_are_refused(root: Path) -> None:
    message = error_of(root, "vizwiz", [ask(1)], side={"annotations": "[3]"})
    assert "must hold a list of objects" in message


# -- captions ----------------------------------------------------------------------------------


def coco(names: list[str], key: str = "file_name", first: int = 1) -> dict[str, Any]:
    images = [{"id": first + i, key: name} for i, name in enumerate(names)]
    captions = [
        {"image_id": first + i, "id": 2 * i + j, "caption": f"{word} {name}"}
        for i, name in enumerate(names)
        for j, word in enumerate(("a", "the"))
    ]
    return {"images": images, "annotations": captions}


@pytest.mark.parametrize("key", ["file_name", "image"])
def test_a_caption_file_gives_an_item_an_image_with_all_captions(root: Path, key: str) -> None:
    samples = read(root, "coco_captions", coco(["a.png", "b.png"], key), prompt="Say it.")
    assert [sample.references for sample in samples] == [
        ("a a.png", "the a.png"),
        ("a b.png", "the b.png"),
    ]
    assert {sample.prompt for sample in samples} == {"Say it."}


def test_a_caption_file_trains_on_each_caption(root: Path) -> None:
    file = write(root, "train.json", coco(["a.png"]))
    task = Task("t", train=file, test=file, format="coco_captions", prompt="Say it.")
    samples = open_source(task, "train", root)
    assert [sample.turns[1].text for sample in samples] == ["a a.png", "the a.png"]
    assert [sample.id for sample in samples] == ["1", "1#2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": []}, "'annotations' must be a list of objects"),
        ({"images": [{"id": 1}], "annotations": []}, "image '1' has no 'file_name'"),
        ({"images": [{"file_name": "a.png"}], "annotations": []}, "entry 0 has no 'id'"),
        ({"images": [{"id": 1, "file_name": "a.png"}], "annotations": []}, "'1' has no caption"),
        ({"images": [], "annotations": [{"caption": "x"}]}, "annotation 0 has no 'image_id'"),
        ({"images": [], "annotations": []}, "holds no items"),
    ],
)
def test_an_error_of_a_caption_file_is_one_line(
    root: Path, content: dict[str, Any], message: str
) -> None:
    assert message in error_of(root, "coco_captions", content, prompt="Say it.")


def test_a_caption_task_without_a_prompt_is_refused_before_it_is_read(root: Path) -> None:
    task = Task("t", train="no.json", test="no.json", format="coco_captions")
    with pytest.raises(ValueError, match="task 't': format 'coco_captions' needs a prompt"):
        SampleStore([task], root)


@pytest.mark.parametrize(
    "names", [["x/b.png", "y/a.png"], ["1.png", "2.png"]], ids=["by name", "by position"]
)
def test_references_of_questions_are_found_by_file_name_or_by_position(
    root: Path, names: list[str]
) -> None:
    items = [ask(10, "sub/a.png", answer="one"), ask(11, "sub/b.png", answer="one")]
    samples = read(root, "coin", items, side={"captions": coco(names)})
    first = "y/a.png" if "y/a.png" in names else "1.png"
    assert samples[0].references == (f"a {first}", f"the {first}")
    assert samples[1].references[0] == f"a {next(name for name in names if name != first)}"


def test_references_that_fit_neither_way_are_refused(root: Path) -> None:
    items = [ask(10, "sub/a.png", answer="one"), ask(11, "sub/b.png", answer="one")]
    mixed = coco(["a.png", "other.png"])
    assert "(id '11'): its image is not in" in error_of(
        root, "coin", items, side={"captions": mixed}
    )
    twice = coco(["a.png", "x/a.png"])
    assert "two images have one 'file_name'" in error_of(
        root, "coin", items, side={"captions": twice}
    )


# -- D-MoLE ------------------------------------------------------------------------------------


def test_choices_are_lettered_and_the_index_becomes_a_letter(root: Path) -> None:
    item = {"image": "a.png", "question": "which?", "choices": ["cat", "dog"], "answer": 1}
    (sample,) = read(root, "choices", [item], file="test.jsonl")
    assert sample.prompt == "which?\nA. cat\nB. dog"
    assert sample.references == ("B",)
    assert sample.metadata["choices"] == ["cat", "dog"]


@pytest.mark.parametrize("answer", [2, -1, True, "B", None])
def test_an_answer_that_is_no_index_is_refused(root: Path, answer: Any) -> None:
    item = {"image": "a.png", "question": "which?", "choices": ["cat", "dog"], "answer": answer}
    assert "is not an index of the 2 choices" in error_of(root, "choices", [item])


def skvg(**changes: Any) -> dict[str, Any]:
    item = {"image": "a.png", "sent": "the man", "knowledge": "he is old", "bbox": [1, 2, 3, 4.5]}
    return item | {"width": 40, "height": 30} | changes


def test_a_phrase_gets_its_knowledge_and_a_box_with_the_size(root: Path) -> None:
    prompt = "Knowing {knowledge}, where is <ref>{sent}</ref>?"
    (sample,) = read(root, "skvg", [skvg()], prompt=prompt)
    assert sample.prompt == "Knowing he is old, where is <ref>the man</ref>?"
    assert sample.references == ("[1, 2, 3, 4.5] size=40x30",)
    assert sample.metadata["size"] == [40, 30]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox": [1, 2, 3]}, "'bbox' must be 4 numbers"),
        ({"bbox": "1,2,3,4"}, "'bbox' must be 4 numbers"),
        ({"width": None}, "'width' and 'height' must be 2 numbers"),
        ({"height": 0}, "'width' and 'height' must be positive"),
    ],
)
def test_an_error_of_skvg_is_one_line(root: Path, changes: dict[str, Any], message: str) -> None:
    assert message in error_of(root, "skvg", [skvg(**changes)], prompt="{sent}")


def meta(**changes: Any) -> dict[str, Any]:
    return {"x": {"root": ".", "annotation": "x.jsonl", "repeat_time": 1, "length": 2} | changes}


def train(root: Path, content: dict[str, Any]) -> list[Sample]:
    write(root, "x.jsonl", [talk(1), talk(2)])
    task = Task("t", train=write(root, "meta.json", content), test="x.jsonl", image_root=".")
    return open_source(task, "train", root)


def test_a_meta_file_is_read_with_its_repeats_and_its_folder(root: Path) -> None:
    samples = train(root, meta(repeat_time=2, root="sub"))
    assert [sample.id for sample in samples] == ["1", "2", "1#2", "2#2"]
    assert samples[0].images[0].path == root / "sub" / "a.png"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 3}, "x: 'length' is 3, but .* holds 2 items"),
        ({"repeat_time": 0}, "'repeat_time' must be 1 or more, got 0"),
        ({"annotation": "no.jsonl"}, r"no\.jsonl does not exist"),
    ],
)
def test_an_error_of_a_meta_file_is_one_line(
    root: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(root, meta(**changes))


# -- retention ---------------------------------------------------------------------------------


def test_pope_is_read_as_lines_whatever_the_suffix(root: Path) -> None:
    rows = [{"question_id": 1, "image": "a.png", "text": "is it?", "label": "Yes"}]
    for file in ("pope.json", "pope.jsonl"):
        (sample,) = read(root, "pope", "\n".join(map(json.dumps, rows)), file=file)
        assert sample.references == ("yes",)
    assert read(root, "pope", rows)[0].references == ("yes",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question_id": 1, "image": "a.png", "text": "?", "label": "maybe"}', "yes or no"),
        ('{"image": "a.png", "text": "?", "label": "no"}\n{', "broken JSON at line 2"),
        ('{"question_id": 1', "broken JSON at line 1"),
    ],
)
def test_an_error_of_pope_is_one_line(root: Path, text: str, message: str) -> None:
    assert message in error_of(root, "pope", text)


def mme(root: Path, text: str) -> list[Sample]:
    (root / "questions").mkdir()
    write(root / "questions", "sub.txt", text)
    task = Task("t", test="questions", image_root=".", format="mme", eval_only=True)
    return open_source(task, "test", root)


def test_mme_answers_name_their_image(root: Path) -> None:
    samples = mme(root, "a.png\tIs it?\tYes\na.png\tIs it not?\tNo\tpredicted\n")
    assert [s.references for s in samples] == [
        ("Yes image=sub/a.png",),
        ("No image=sub/a.png",),
    ]
    assert [s.id for s in samples] == ["sub/1", "sub/2"]
    assert samples[0].images[0].path == root / "sub" / "a.png"


@pytest.mark.parametrize("line", ["a.png Is it? Yes", "a.png\tIs it?\tPerhaps"])
def test_a_broken_line_of_mme_is_named(root: Path, line: str) -> None:
    with pytest.raises(ValueError, match=r"sub\.txt, line 2: expected image, question"):
        mme(root, f"a.png\tIs it?\tYes\n{line}\n")


def test_an_mme_folder_without_texts_is_refused(root: Path) -> None:
    task = Task("t", test="sub", format="mme", eval_only=True)
    with pytest.raises(ValueError, match=r"must be a folder with one \.txt file per sub-task"):
        open_source(task, "test", root)


def mmmu(**changes: Any) -> dict[str, Any]:
    item = {"id": "v_1", "question": "<image 1> which?", "options": "['x', 'y']", "answer": "B"}
    return item | {"image_1": "a.png", "image_2": "b.png", "image_3": None} | changes


def test_mmmu_has_its_images_its_options_and_a_request(root: Path) -> None:
    (sample,) = read(root, "mmmu", [mmmu()])
    assert [image.path.name for image in sample.images] == ["a.png", "b.png"]
    assert sample.prompt == (
        "<image 1> which?\nA. x\nB. y\n"
        "Answer with the option's letter from the given choices directly."
    )
    (open_one,) = read(root, "mmmu", [mmmu(options="[]", answer=3.5)])
    assert open_one.references == ("3.5",)
    assert open_one.prompt.endswith("which?\nAnswer the question using a single word or phrase.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "C"}, "answer 'C' is none of the letters A, B"),
        ({"options": "x, y"}, "'options' is no list"),
        ({"options": {"A": "x"}}, "'options' must be a list"),
    ],
)
def test_an_error_of_mmmu_is_one_line(root: Path, changes: dict[str, Any], message: str) -> None:
    assert message in error_of(root, "mmmu", [mmmu(**changes)])


# -- all ---------------------------------------------------------------------------------------


def test_an_unknown_format_is_answered_with_those_there_are(root: Path) -> None:
    message = error_of(root, "coco", [ask(1, answer="x")])
    assert "task 't': unknown format 'coco', there are auto, choices, coco_captions" in message


def test_side_files_of_a_format_that_has_none_are_refused(root: Path) -> None:
    message = error_of(root, "auto", [ask(1, answer="x")], side={"problems": {}})
    assert "format 'auto' knows no side file 'problems', none" in message


def test_a_missing_side_file_is_named(root: Path) -> None:
    task = Task(
        *("t", "x", write(root, "test.json", [ask(5)])),
        format="scienceqa",
        side_files={"problems": "{a,b}/problems.json"},
    )
    with pytest.raises(FileNotFoundError, match="task 't': side file 'problems': none of these"):
        open_source(task, "test", root)


@pytest.mark.parametrize("form", sorted(set(LAYOUTS) - {"mme"}))
def test_every_format_refuses_an_item_that_is_no_object(root: Path, form: str) -> None:
    layout = LAYOUTS[form]
    side = {key: {"data": [], "annotations": []} for key in layout.required}
    message = error_of(root, form, [3], side=side, prompt="x")
    assert "test.json: " in message


@pytest.mark.parametrize("form", ["coin", "scienceqa", "gqa", "choices", "skvg", "textvqa"])
def test_every_format_trains_on_conversations(root: Path, form: str) -> None:
    layout = LAYOUTS[form]
    side = dict.fromkeys(layout.required, "not-read.json")
    file = write(root, "train.json", [talk(1), talk(2)])
    task = Task("t", train=file, test=file, format=form, side_files=side, prompt="no {such} key")
    samples = open_source(task, "train", root)
    assert [sample.turns[1].text for sample in samples] == ["red", "red"]


def test_the_test_images_may_be_elsewhere(root: Path) -> None:
    file = write(root, "x.json", [talk(1)])
    other = write(root, "y.json", [talk(1)])
    task = Task("t", train=file, test=other, image_root=".", test_image_root="{no,sub}")
    assert open_source(task, "train", root)[0].images[0].path == root / "a.png"
    assert open_source(task, "test", root)[0].images[0].path == root / "sub" / "a.png"


def test_a_prompt_suffix_follows_a_prompt(root: Path) -> None:
    (sample,) = read(root, "coin", [ask(1, answer="x")], prompt="Q: {question}", prompt_suffix="!")
    assert sample.prompt == "Q: what?!"


def test_a_task_can_be_tested_on_its_train_file(root: Path) -> None:
    file = write(root, "train.json", [talk(1, "A")])
    task = Task(
        *("t", file, file),
        format="scienceqa",
        side_files={"problems": "not-read.json"},
        test_image_root="not-there",
    )
    (sample,) = open_source(task, "test", root)
    assert sample.references == ("A",)
    assert sample.turns[-1].role == "user"


def test_a_side_file_with_two_answers_for_one_question_is_refused(tmp_path: Path) -> None:
    entries = [{"question_id": 1, "answers": ["a"]}, {"question_id": "1", "answers": ["b"]}]
    same = [{"question_id": 1, "answers": ["a"]}] * 2
    assert index_by(same, "question_id", tmp_path) == {"1": same[0]}
    with pytest.raises(ValueError, match="entry 1 repeats the 'question_id' '1' with a change"):
        index_by(entries, "question_id", tmp_path)
