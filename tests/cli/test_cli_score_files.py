"""Files of predictions and references in every form in which people have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dmole.benchmarks.predictions import read_predictions, read_targets
from dmole.cli.main import main

PREDICTIONS = [{"question_id": n, "text": text} for n, text in ((1, "red"), (2, "blue"))]
TARGETS = [{"question_id": n, "text": "?", "answer": text} for n, text in ((1, "red"), (2, "tan"))]


def as_list(rows: list[Any]) -> str:
    return json.dumps(rows, indent=1)


def as_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_loose_lines(rows: list[Any]) -> str:
    return "\ufeff\r\n" + "".join(json.dumps(row) + "\r\n  \r\n" for row in rows)


FORMS = [as_list, as_lines, as_loose_lines, lambda rows: as_lines(rows).rstrip("\n")]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".txt"])
@pytest.mark.parametrize("count", [1, 2])
def test_the_content_and_not_the_suffix_tells_json_from_json_lines(
    tmp_path: Path, form: Any, suffix: str, count: int
) -> None:
    predictions, targets = tmp_path / f"p{suffix}", tmp_path / f"t{suffix}"
    predictions.write_bytes(form(PREDICTIONS[:count]).encode())
    targets.write_bytes(form(TARGETS[:count]).encode())
    assert [(p.id, p.text) for p in read_predictions(predictions)] == [
        (str(row["question_id"]), row["text"]) for row in PREDICTIONS[:count]
    ]
    assert [(t.id, t.references) for t in read_targets(targets)] == [
        (str(row["question_id"]), (row["answer"],)) for row in TARGETS[:count]
    ]


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        ({"question_id": 1, "answer": "red"}, ["1"]),
        ({"answer": "red", "text": "?"}, ["0"]),
        ({"id": {"answer": "red"}}, ["id"]),
        ({"1": {"answer": "red"}, "2": {"answer": "tan"}}, ["1", "2"]),
        ({"annotations": [{"question_id": 5, "answers": ["a", 4]}], "id": 3}, ["5"]),
    ],
)
def test_one_object_is_a_question_or_holds_questions(
    tmp_path: Path, content: Any, ids: list[str]
) -> None:
    path = tmp_path / "r.json"
    for text in (json.dumps(content), json.dumps(content, indent=2)):
        path.write_text(text)
        assert [target.id for target in read_targets(path)] == ids


def test_ids_are_paired_whatever_their_type_and_null_is_no_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions, targets = tmp_path / "p.jsonl", tmp_path / "t.jsonl"
    rows = [("1", "red"), (2.0, None), (3, " "), ("x", "red")]
    predictions.write_text(as_lines([{"id": i, "prediction": text} for i, text in rows]))
    targets.write_text(as_lines([{"id": i, "answer": "red"} for i in (1, "2", 3, 4)]))
    words = [str(predictions), "--metric", "exact_match", "--references", str(targets), "--json"]
    assert main(["score", *words]) == 0
    facts = json.loads(capsys.readouterr().out)
    shown = {key: facts[key] for key in ("n", "missing", "unparsable", "ignored", "score")}
    assert shown == {"n": 4, "missing": 2, "unparsable": 1, "ignored": 1, "score": 25.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": 1, "prediction": "a"}\n\n{"id": 2}\n', "p.jsonl: line 3 must have an 'id' or"),
        ('{"id": 1, "prediction": "a"}\n{"id": 2,\n', "p.jsonl: broken JSON at line 2 column 10"),
        ('{"id": 1, "prediction"\n{"id": 2}\n', "p.jsonl: broken JSON at line 2 column 1"),
        ('[{"id": 1, "prediction": "a"},\n{"id": 2\n', "p.jsonl: broken JSON at line 3 column 1"),
        ('{"id": 1, "id": 2, "prediction": "a"}\n', "p.jsonl: broken JSON: key 'id' is set twice"),
        ('{"id": 1, "prediction": true}\n', "line 1: 'prediction' must be text or null, not a boo"),
        ('{"id": 1, "text": 4}\n{"id": 2}', "line 1: 'text' must be text or null, not a number"),
        ('{"id": [1], "text": "a"}\n', "line 1: an id must be text or a whole number, got [1]"),
        ('{"id": NaN, "text": "a"}\n', "line 1: an id must be text or a whole number, got nan"),
        ('{"id": "", "text": "a"}\n', "line 1: an id must be text or a whole number, got ''"),
        ('["a"]\n', "entry 1 is a string, not an object"),
        ("7\n", "line 1 is a number, not an object"),
        ("\n \n", "p.jsonl: holds no predictions"),
    ],
)
def test_a_broken_file_of_predictions_is_named_with_the_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"p\.jsonl") as caught:
        read_predictions(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_repeated_id_is_named_with_both_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.jsonl"
    rows = [{"id": i, "prediction": "a", "references": ["a"]} for i in ("7", "8", 7)]
    path.write_text(as_lines(rows))
    assert main(["score", str(path), "--metric", "exact_match"]) == 1
    error = capsys.readouterr().err
    assert f"{path}: line 3: the predictions hold two answers for the id '7'" in error
    assert "the first is in line 1" in error


def test_a_file_of_splits_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "problems.json"
    path.write_text(json.dumps({"1": {"choices": ["a", "b"], "answer": 1}}))
    for content in ([], {"train": ["1"]}, {"test": "1"}):
        (tmp_path / "pid_splits.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="must hold an object with the list 'test'"):
            read_targets(path)
