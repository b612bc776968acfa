from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dmole.cli.main import main


def write(path: Path, content: Any) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in content))
    else:
        path.write_text(json.dumps(content))
    return str(path)


def coin_line(number: Any, text: str) -> dict[str, Any]:
    return {
        "question_id": number,
        "prompt": "what?",
        "text": text,
        "answer_id": "x",
        "metadata": {},
    }


def scored(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["score", *words, "--json"]) == 0, capsys.readouterr().err
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["score", *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("dmole: ")
    assert error.count("\n") == 1
    return error


def vqa(answers: list[Any]) -> dict[str, Any]:
    return {"data": [{"question_id": 1, "answers": answers}]}


def conversation(last: str) -> list[dict[str, Any]]:
    turns = [{"from": "human", "value": "what?"}, {"from": last, "value": "a"}]
    return [{"id": 1, "conversations": turns}]


@pytest.fixture
def coin(tmp_path: Path) -> tuple[str, str]:
    """Five GQA questions, four answered in another order, one of them wrongly."""
    questions = [
        {"question_id": n, "image": f"{n}.png", "text": "what?", "answer": f"thing {n}"}
        for n in range(5)
    ]
    lines = [coin_line(str(n), f"Thing {n}.") for n in (3, 1, 0)] + [coin_line(4, "no")]
    return write(tmp_path / "p.jsonl", lines), write(tmp_path / "test.json", questions)


def test_coin_predictions_are_paired_by_id_and_missing_ones_counted(
    coin: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    predictions, references = coin
    result = scored(capsys, predictions, "--task", "CoIN/gqa", "--references", references)
    assert result["metric"] == "coin_gqa"
    assert (result["n"], result["missing"], result["ignored"]) == (5, 1, 0)
    assert result["profiles"] == {"published": 75.0, "corrected": 60.0}
    assert (result["score"], result["profile"]) == (75.0, "published")
    words = ("--metric", "coin_gqa", "--references", references, "--profile", "corrected")
    assert scored(capsys, predictions, *words)["score"] == 60.0


def test_the_text_form_shows_both_profiles_and_which_one_is_the_score(
    coin: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    predictions, references = coin
    assert main(["score", predictions, "--metric", "coin_gqa", "--references", references]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert lines[:6] == [
        ["metric", "coin_gqa"],
        ["n", "5"],
        ["missing", "1"],
        ["unparsable", "0"],
        ["published", "75.00  (the score)"],
        ["corrected", "60.00"],
    ]


def test_imagenet_is_paired_by_position_as_published_and_by_id_as_corrected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [{"question_id": n, "text": "?", "answer": a} for n, a in enumerate(["cat", "dog"])]
    lines = [coin_line(1, "dog"), coin_line(0, "cat")]
    result = scored(
        capsys,
        write(tmp_path / "p.jsonl", lines),
        *("--task", "coin/ImageNet", "--references", write(tmp_path / "t.json", labels)),
    )
    assert result["profiles"] == {"published": 0.0, "corrected": 100.0}
    assert result["score"] == 0.0


def test_predictions_of_a_run_need_no_references(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = {
        "id": "7",
        "prompt": "where?",
        "prediction": "[100, 200, 300, 400]",
        "references": ["[1, 2, 3, 4]"],
        "score": 0.0,
        "gate_set": "base",
        "metadata": {"width": 10, "height": 10},
    }
    result = scored(capsys, write(tmp_path / "x.jsonl", [line]), "--metric", "dmole_grounding")
    assert result["profiles"] == {"published": 100.0, "corrected": 100.0}
    line["references"] = ["red"]
    line["prediction"] = "Red"
    result = scored(capsys, write(tmp_path / "x.jsonl", [line]), "--metric", "exact_match")
    assert result["score"] == 100.0
    assert "profiles" not in result


def test_grounding_takes_box_and_size_from_the_test_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = {"question_id": 1, "text": "?", "answer_bbox": "[0, 0, 0.5, 1]", "size": [4, 2]}
    result = scored(
        capsys,
        write(tmp_path / "p.jsonl", [coin_line(1, "[0.00, 0.0, 0.5, 1.00]")]),
        *("--task", "coin/grounding", "--references", write(tmp_path / "t.json", [target])),
    )
    assert result["profiles"] == {"published": 100.0, "corrected": 100.0}


def test_sci_takes_the_question_from_the_predictions_and_the_image_from_the_test_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = {
        "id": "1",
        "image": "MapQA_1.png",
        "conversations": [
            {"from": "human", "value": "Which states are red?"},
            {"from": "gpt", "value": "ohio, utah"},
        ],
    }
    result = scored(
        capsys,
        write(tmp_path / "p.jsonl", [coin_line("1", "utah")]),
        *("--task", "mllm_dcl/Sci", "--references", write(tmp_path / "t.json", [target])),
    )
    assert result["profiles"] == {"published": 0.0, "corrected": 50.0}


@pytest.mark.parametrize("key", ["data", "annotations"])
def test_vqa_annotations_give_ten_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    answers: list[Any] = ["yes"] * 3 + ["no"] * 7
    if key == "annotations":
        answers = [{"answer": answer} for answer in answers]
    content = {key: [{"question_id": 1, "answers": answers}]}
    result = scored(
        capsys,
        write(tmp_path / "p.jsonl", [coin_line(1, "Yes")]),
        *("--task", "coin/textvqa", "--references", write(tmp_path / "t.json", content)),
    )
    assert result["score"] == pytest.approx(90.0)


def test_scienceqa_counts_the_questions_of_its_test_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = {str(n): {"choices": ["x", "y"], "answer": 1} for n in range(4)}
    write(tmp_path / "pid_splits.json", {"train": ["3"], "test": ["0", "1", "2"]})
    result = scored(
        capsys,
        write(tmp_path / "p.jsonl", [coin_line("0", "B"), coin_line("3", "B")]),
        *("--task", "coin/ScienceQA", "--references", write(tmp_path / "problems.json", problems)),
    )
    assert (result["n"], result["missing"], result["ignored"]) == (3, 2, 1)
    assert result["profiles"] == pytest.approx({"published": 100 / 3, "corrected": 100 / 3})


def test_gqa_questions_by_id_leave_out_the_unbalanced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = {"a": {"answer": "yes"}, "b": {"answer": "no", "isBalanced": False}}
    result = scored(
        capsys,
        write(tmp_path / "p.jsonl", [coin_line("a", "Yes"), coin_line("b", "Yes")]),
        *("--task", "coin/GQA", "--references", write(tmp_path / "q.json", questions)),
    )
    assert (result["n"], result["ignored"], result["score"]) == (1, 1, 100.0)


def test_coco_captions_are_scored_with_the_tokenizer_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    texts = ["a red cat sits here", "two dogs run very fast"]
    content = {
        "images": [{"id": 1, "file_name": "x"}, {"id": 2, "file_name": "y"}],
        "annotations": [
            {"id": n, "image_id": n, "caption": t} for n, t in enumerate(texts, start=1)
        ],
    }
    references = write(tmp_path / "coco.json", content)
    lines = [coin_line(f"q{n}", text) for n, text in enumerate(texts)]
    predictions = write(tmp_path / "p.jsonl", lines)
    words = ("--task", "ucit/Flickr30k", "--references", references)
    result = scored(capsys, predictions, *words, "--profile", "corrected")
    assert result["score"] == pytest.approx(1000.0)
    assert result["details"]["tokenizer"] == "python"
    assert result["details"]["pairing"] == "by position: no prediction has a reference's id"
    assert "METEOR needs a Java runtime" in refused(capsys, predictions, *words)


def test_faults_are_said_in_one_line(
    tmp_path: Path, coin: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    predictions, references = coin
    bare = write(tmp_path / "bare.jsonl", [{"id": "1"}])
    twice = write(tmp_path / "twice.jsonl", [coin_line(1, "a"), coin_line("1", "b")])
    other = write(tmp_path / "other.jsonl", [coin_line("x", "a")])
    empty = write(tmp_path / "empty.jsonl", [])
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"id": 1, "prediction": "a", "references": ["a"]}\n{"id": \n')
    many = write(tmp_path / "many.jsonl", [coin_line(n, "a") for n in range(9)])
    for message, *words in (
        ("unknown metric 'x'", predictions, "--metric", "x"),
        ("unknown task 'coin/x', expected one of coin/ScienceQA", predictions, "--task", "coin/x"),
        ("one of the arguments --task --metric is required", predictions),
        ("holds no references", predictions, "--metric", "coin_gqa"),
        ("absent.json does not exist", "absent.json", "--metric", "coin_gqa"),
        ("bare.jsonl: line 1 must have an 'id'", bare, "--metric", "coin_gqa"),
        (
            "twice.jsonl: line 2: the predictions hold two answers",
            twice,
            "--metric",
            "coin_gqa",
            "--references",
            references,
        ),
        ("no prediction has an id", other, "--metric", "coin_gqa", "--references", references),
        ("holds no predictions", empty, "--metric", "coin_gqa"),
        ("broken JSON at line 2 column 8", str(broken), "--metric", "coin_gqa"),
        (
            "9 predictions but 5 references",
            many,
            "--task",
            "coin/ImageNet",
            "--references",
            references,
        ),
        ("has one rule and no profiles", predictions, "--metric", "iou", "--profile", "corrected"),
    ):
        assert message in refused(capsys, *words)


def test_malformed_references_are_named_by_entry(
    tmp_path: Path, coin: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for message, content in (
        ("entry 2 repeats the id '1' of entry 1", [{"question_id": 1, "answer": "a"}] * 2),
        ("entry 1 (id '1'): has no 'answer'", [{"question_id": 1}]),
        ("entry 1 is a string, not an object", ["a"]),
        ("(id '1'): an answer must be text or a number, not null", vqa([None, "a"])),
        ("(id '1'): an answer must be text or a number, not a boolean", vqa([True])),
        ("entry 1: an id must be text or a whole number, got 1.5", [{"id": 1.5, "answer": "a"}]),
        ("the last turn of 'conversations' is not an answer", conversation("human")),
        ("holds no references", []),
        ("entry 1 (id '1'): has no answer", {"data": [{"question_id": 1, "answers": []}]}),
        ("is malformed: KeyError", [{"id": 1, "conversations": [{"from": "gpt"}]}]),
        ("no COCO captions", {"images": [{"id": 1}], "annotations": [{"image_id": 2}]}),
        ("holds no question with the id 'a'", {"a": "b"}),
    ):
        references = write(tmp_path / "r.json", content)
        words = (coin[0], "--metric", "coin_gqa", "--references", references)
        assert message in refused(capsys, *words)
