from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dmole.data.task import Task
from dmole.demo.tiny import TINY_PATH
from dmole.doctor import BaseModel, CheckOptions, TokenLimit, as_json, as_text, check_tasks
from dmole.doctor.report import histogram

TINY = BaseModel(str(TINY_PATH))


def item(id: Any, question: str = "what ?", answer: str = "red", **keys: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return ({} if id is None else {"id": id}) | {"conversations": turns} | keys


def picture(path: Path, seed: int, size: int = 6) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write(path: Path, items: list[Any]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(entry) + "\n" for entry in items))
    else:
        path.write_text(json.dumps(items))


@pytest.fixture
def pics(tmp_path: Path) -> Path:
    folder = tmp_path / "pics"
    folder.mkdir()
    for seed in range(8):
        picture(folder / f"{seed}.png", seed)
    return folder


def check(root: Path, *, tasks: list[Task] | None = None, **options: Any) -> dict[str, Any]:
    (root / "pics").mkdir(exist_ok=True)
    tasks = tasks or [Task("t", train="train.jsonl", test="test.json", image_root="pics")]
    return as_json(check_tasks(tasks, root, CheckOptions(**options)))


def found(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(f["kind"], f["split"], f["item"], f["id"]) for f in report["findings"]]


@pytest.fixture
def broken(tmp_path: Path, pics: Path) -> Path:
    (pics / "cut.png").write_bytes((pics / "0.png").read_bytes()[:60])
    (pics / "text.png").write_text("no image")
    (tmp_path / "outside.png").write_bytes((pics / "0.png").read_bytes())
    (pics / "link.png").symlink_to(tmp_path / "outside.png")
    with Image.open(pics / "1.png") as image:
        image.save(pics / "copy_of_1.bmp")
    train = [
        item("a0", image="0.png"),
        item("a1", image="gone.png"),
        item("a2", image=["1.png", "gone.png", "../x.png"], answer=" "),
        item("a3", image="cut.png"),
        item("a0", image="1.png"),
        item("a5", image="text.png"),
        item(None, image="link.png"),
        ["no", "object"],
        {"id": "a8", "question": "what ?"},
        {"id": "a9"},
        item("a10", image="cut.png"),
        item("a11", "word " * 600, image="2.png"),
        item("a12", image="/etc/x.png"),
        item("a13", image=3),
        item("a14", "<image> <image> ?", image="3.png"),
    ]
    test = [
        item("b0", image="4.png"),
        item("b1", image="copy_of_1.bmp"),
        item("a3", "new ?", image="5.png"),
        item("b3", "another ?", image="1.png"),
        item("b4", "long " * 600, image="6.png"),
    ]
    write(tmp_path / "train.jsonl", train)
    write(tmp_path / "test.json", test)
    return tmp_path


FINDINGS = {
    ("missing_image", "train", 1, "a1"),
    ("missing_image", "train", 2, "a2"),
    ("image_path", "train", 2, "a2"),
    ("empty_answer", "train", 2, "a2"),
    ("unreadable_image", "train", 3, "a3"),
    ("unreadable_image", "train", 5, "a5"),
    ("unreadable_image", "train", 10, "a10"),
    ("duplicate_id", "train", 4, "a0"),
    ("image_path", "train", 6, "6"),
    ("malformed", "train", 7, "7"),
    ("malformed", "train", 8, "a8"),
    ("malformed", "train", 9, "a9"),
    ("image_path", "train", 12, "a12"),
    ("malformed", "train", 13, "a13"),
    ("malformed", "train", 14, "a14"),
    ("too_long", "train", 11, "a11"),
    ("too_long", "test", 4, "b4"),
    ("shared_question", "test", 1, "b1"),
    ("shared_image", "test", 3, "b3"),
    ("shared_id", "test", 2, "a3"),
    ("one_answer", "test", None, None),
}
NO_FINDINGS = {"errors": 0, "warnings": 0, "findings": []}


def test_every_kind_of_error_is_found_with_file_and_item(broken: Path) -> None:
    report = check(broken, model=TINY)
    assert len(found(report)) == len(FINDINGS)
    assert set(found(report)) == FINDINGS
    files = {"train": str(broken / "train.jsonl"), "test": str(broken / "test.json")}
    assert all(finding["file"] == files[finding["split"]] for finding in report["findings"])
    assert (report["errors"], report["warnings"]) == (17, 4)
    assert report["token_limit"] == 512


def test_the_texts_say_what_is_wrong(broken: Path) -> None:
    report = check(broken, model=TINY)
    messages = {(f["kind"], f["item"]): f["message"] for f in report["findings"]}
    assert "gone.png does not exist" in messages["missing_image", 1]
    assert "symbolic link" in messages["image_path", 6]
    assert "cut.png" in messages["unreadable_image", 3]
    assert messages["duplicate_id", 4] == "has the id of item 0"
    assert messages["malformed", 7] == "is a list, not an object"
    assert messages["shared_question", 1].startswith("asks the question of train item 4 ")
    assert messages["shared_image", 3].startswith("has an image of train item 2 ")
    assert messages["shared_id", 2] == "has the id of train item 3"
    assert messages["one_answer", None] == "100.0% of the answers are 'red'"
    assert "more than max_length 512" in messages["too_long", 11]


def test_the_text_report_has_a_line_a_finding(broken: Path) -> None:
    tasks = [Task("t", train="train.jsonl", test="test.json", image_root="pics")]
    text = as_text(check_tasks(tasks, broken, CheckOptions(model=TINY)))
    lines = text.splitlines()
    assert lines[-1] == "17 errors, 4 warnings"
    assert sum(line.startswith(("error ", "warning ")) for line in lines) == len(FINDINGS)
    place = f"error malformed: t train: {broken / 'train.jsonl'}: item 9 (id 'a9'): has neither"
    assert any(line.startswith(place) for line in lines)


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_the_number_of_processes_changes_nothing(broken: Path, processes: int) -> None:
    alone = check(broken, model=TINY, limit=2)
    assert check(broken, model=TINY, limit=2, processes=processes) == alone


def test_all_are_counted_where_few_are_listed(broken: Path) -> None:
    report = check(broken, limit=1)
    counts = report["tasks"][0]["splits"]["train"]["counts"]
    assert (counts["malformed"], counts["unreadable_image"], counts["image_path"]) == (5, 3, 3)
    assert [item for kind, _, item, _ in found(report) if kind == "malformed"] == [7]
    assert report["errors"] == 15
    assert check(broken, limit=0)["errors"] == 15
    tasks = [Task("t", train="train.jsonl", test="test.json", image_root="pics")]
    text = as_text(check_tasks(tasks, broken, CheckOptions(limit=1)))
    assert "error malformed: t train: 4 more not listed" in text.splitlines()


@pytest.mark.parametrize("processes", [0, 2])
def test_healthy_data_have_no_findings(tmp_path: Path, pics: Path, processes: int) -> None:
    train = [item(f"x{i}", answer=f"{i % 2}", image=f"{i % 4}.png") for i in range(20)]
    test = [item(f"y{i}", answer=f"{i % 2}", image=f"{4 + i % 4}.png") for i in range(10)]
    write(tmp_path / "train.jsonl", train)
    write(tmp_path / "test.json", test)
    report = check(tmp_path, model=TINY, processes=processes)
    assert {key: report[key] for key in NO_FINDINGS} == NO_FINDINGS
    splits = report["tasks"][0]["splits"]
    assert splits["train"]["images"] == {"named": 20, "files": 4}
    assert splits["train"]["items"] == splits["train"]["tokens"]["samples"] == 20
    frequent = [{"answer": f"{i}", "count": 5, "share": 0.5} for i in range(2)]
    assert splits["test"]["answers"]["most_frequent"] == frequent


def test_ids_that_are_numbers_and_texts_are_one(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [item(1), item("1"), item(2), item(None)])
    write(tmp_path / "test.json", [item(7, "b ?"), item(8, "c ?", "blue"), item(7, "d ?")])
    report = check(tmp_path)
    assert found(report) == [("duplicate_id", "train", 1, "1"), ("duplicate_id", "test", 2, "7")]


def test_numbers_that_count_items_are_no_leak_but_long_ones_are(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [item(i) for i in (1, 2, 262148000)])
    test = [item(i, f"q{i} ?", f"{i}") for i in (2, 1, 262148000)]
    write(tmp_path / "test.json", test)
    assert found(check(tmp_path)) == [("shared_id", "test", 2, "262148000")]


def test_a_text_question_seen_in_training_is_a_leak(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [item("a", "one ?"), item("b", "two ?")])
    test = [{"question_id": 5, "text": "two ?", "answer": "x"}]
    test += [{"question_id": "c", "text": "three ?", "answer": "red"}]
    write(tmp_path / "test.json", test)
    assert found(check(tmp_path)) == [("shared_question", "test", 0, "5")]


def test_a_dialog_seen_in_training_is_a_leak_with_a_suffix_too(tmp_path: Path) -> None:
    turns = item("a")["conversations"] + item("a", "two ?", "blue")["conversations"]
    for name, id in (("train.jsonl", "a"), ("test.json", "b")):
        write(tmp_path / name, [{"id": id, "conversations": turns}, item(f"{id}2", f"{id} ?", id)])
    tasks = [Task("t", train="train.jsonl", test="test.json", prompt_suffix=" Be brief.")]
    assert found(check(tmp_path, tasks=tasks)) == [("shared_question", "test", 0, "b")]


def test_without_decoding_images_are_the_same_if_their_paths_are(
    tmp_path: Path, pics: Path
) -> None:
    (pics / "1.png").write_text("no image")
    (pics / "2.png").write_bytes((pics / "0.png").read_bytes())
    write(tmp_path / "train.jsonl", [item("a", image="0.png"), item("b", image="1.png")])
    test = [item("c", image="0.png"), item("d", "x ?", "y", image="2.png")]
    write(tmp_path / "test.json", test)
    report = check(tmp_path, decode_images=False)
    assert found(report) == [("shared_question", "test", 0, "c")]
    kinds = {kind for kind, *_ in found(check(tmp_path))}
    assert kinds == {"unreadable_image", "shared_question", "shared_image"}


def test_an_image_too_large_for_pillow_is_an_error(
    tmp_path: Path, pics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(pics / "bomb.png", 0, size=21)
    picture(pics / "small.png", 0, size=14)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    write(tmp_path / "train.jsonl", [item("a", image="bomb.png"), item("b", image="small.png")])
    write(tmp_path / "test.json", [item("c", "x ?")])
    report = check(tmp_path)
    assert found(report) == [("image_bomb", "train", 0, "a")]
    assert report["errors"] == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.jsonl", None, "does not exist"),
        ("train.jsonl", "", "holds no items"),
        ("test.json", '{"a": 1}', "must hold a list"),
    ],
)
def test_a_file_that_cannot_be_read_does_not_end_the_check(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    write(tmp_path / "train.jsonl", [item("a")])
    write(tmp_path / "test.json", [item("b", "x ?")])
    (tmp_path / name).unlink()
    if text is not None:
        (tmp_path / name).write_text(text)
    report = check(tmp_path, model=TINY)
    (finding,) = report["findings"]
    assert (finding["kind"], finding["file"]) == ("file", str(tmp_path / name))
    assert message in finding["message"]
    assert not finding["message"].startswith(str(tmp_path))


def test_a_file_broken_in_the_middle_is_examined_up_to_there(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [item("a"), item("a")])
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write("{broken\n")
    write(tmp_path / "test.json", [item("b", "x ?")])
    report = check(tmp_path, model=TINY)
    assert [kind for kind, *_ in found(report)] == ["file", "duplicate_id"]
    split = report["tasks"][0]["splits"]["train"]
    assert (split["items"], split["complete"]) == (2, False)


def test_a_training_sample_that_will_be_cut_is_a_warning_but_a_prompt_an_error(
    tmp_path: Path,
) -> None:
    write(tmp_path / "train.jsonl", [item("a", answer="red " * 30)])
    write(tmp_path / "test.json", [item("b", "x " * 30 + "?")])
    report = check(tmp_path, model=TINY, tokens=TokenLimit(20, cut=True))
    assert found(report) == [("too_long", "test", 0, "b"), ("will_be_cut", "train", 0, "a")]
    tokens = report["tasks"][0]["splits"]["train"]["tokens"]
    assert (tokens["samples"], tokens["over_limit"]) == (1, 1)


def test_token_lengths_are_those_of_the_collator(tmp_path: Path) -> None:
    from transformers import AutoProcessor

    from dmole.data import open_source
    from dmole.data.collate import Collator

    collator = Collator(AutoProcessor.from_pretrained(TINY_PATH))
    lengths = []
    write(tmp_path / "train.jsonl", [item("a", "count the stars ?", "two"), item("b")])
    write(tmp_path / "test.json", [item("c", "x ?")])
    for split, name in (("train", "train.jsonl"), ("test", "test.json")):
        for sample in open_source(Task("t", **{split: name}), split, tmp_path):
            batch = collator([(sample, "t")], generation=split == "test")
            lengths.append(batch.inputs["input_ids"].shape[1])
    splits = check(tmp_path, model=TINY)["tasks"][0]["splits"]
    tokens = splits["train"]["tokens"]
    assert sorted([tokens["min"], tokens["max"]]) == sorted(lengths[:2])
    assert splits["test"]["tokens"]["max"] == lengths[2]
    assert sum(entry["samples"] for entry in tokens["histogram"]) == 2


def test_a_model_that_cannot_be_loaded_is_a_warning(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [item("a")])
    write(tmp_path / "test.json", [item("b", "x ?")])
    report = check(tmp_path, model=BaseModel(str(tmp_path)))
    assert [kind for kind, *_ in found(report)] == ["no_tokens"]
    assert report["tasks"][0]["splits"]["train"]["tokens"] is None


def test_generated_tasks_have_only_their_size(tmp_path: Path) -> None:
    tasks = [
        Task("p", train="synthetic://paint/train?size=7", test="synthetic://paint/test?size=3")
    ]
    report = check(tmp_path, tasks=tasks, processes=2)
    assert {key: report[key] for key in NO_FINDINGS} == NO_FINDINGS
    assert report["tasks"][0]["splits"]["test"] == {
        "file": "synthetic://paint/test?size=3",
        "generated": True,
        "items": 3,
    }


def test_sizes_of_a_benchmark_are_compared(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [item("a")])
    write(tmp_path / "test.json", [item("b", "x ?")])
    files: dict[str, Any] = {"train": "train.jsonl", "test": "test.json"}
    report = check(tmp_path, tasks=[Task("VizWiz-Cap", **files)])
    messages = {f["split"]: f["message"] for f in report["findings"]}
    assert messages == {
        "train": "has 1 items; published: 117155 (cmit/VizWiz-Cap)",
        "test": "has 1 items; published: 3000 (ucit/VizWiz-Cap)",
    }
    report = check(tmp_path, tasks=[Task("mine", benchmark="UCIT/ArxivQA", **files)])
    assert [finding["message"] for finding in report["findings"]] == [
        "has 1 items; published: 40000 (ucit/ArxivQA)",
        "has 1 items; published: 3000 (ucit/ArxivQA)",
    ]
    with pytest.raises(ValueError, match="unknown benchmark 'UCIT/none'"):
        check(tmp_path, tasks=[Task("mine", benchmark="UCIT/none", **files)])


def test_odd_characters_in_ids_stay_on_one_line(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [item("a\nb", answer=""), item("c")])
    write(tmp_path / "test.json", [item("d", "x ?")])
    (finding,) = check(tmp_path)["findings"]
    assert finding["id"] == "a b"
    assert json.dumps(finding)


def test_a_message_that_quotes_the_file_is_cut(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [{"id": "a", "text": "q", "answer": [1] * 1000}])
    write(tmp_path / "test.json", [item("d", "x ?")])
    (finding,) = check(tmp_path)["findings"]
    assert len(finding["message"]) <= 400
    assert "..." in finding["message"]


def test_histogram_bins_end_at_the_limit() -> None:
    from collections import Counter

    assert histogram(Counter({5: 2, 20: 1, 21: 3}), 20) == [(1, 16, 2), (17, 20, 1), (21, 32, 3)]
    assert histogram(Counter({16: 1}), 100) == [(1, 16, 1)]
