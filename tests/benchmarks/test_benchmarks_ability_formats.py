"""The layouts of MLLM-ACL and CoIN-ASD on small files of their own, whole and broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dmole.benchmarks.coin_asd.readers import LETTER_REQUEST
from dmole.data import Task
from dmole.data.sample import Sample
from dmole.data.source import open_source


@pytest.fixture
def root(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    return tmp_path


def read(root: Path, form: str, items: Any, **side: Any) -> list[Sample]:
    for name, content in {"test": items, **side}.items():
        (root / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    files = {name: f"{name}.json" for name in side}
    task = Task("t", train="x", test="test.json", format=form, side_files=files)
    return list(open_source(task, "test", root))


def ask(name: Any, text: str = "what?", **keys: Any) -> dict[str, Any]:
    return {"question_id": name, "text": f"<image>\n{text}", "image": "a.png", **keys}


def problem(text: str, answer: Any = "3", **keys: Any) -> dict[str, Any]:
    return {
        "question": text,
        "answer": answer,
        "question_type": "free_form",
        "answer_type": "integer",
        "choices": None,
        "unit": None,
        **keys,
    }


THREE = {str(n): problem(f"How  many are {n}?", str(n)) for n in (1, 2, 3)}


@pytest.mark.parametrize("first", [0, 1])
def test_a_problem_is_found_by_its_pid_or_its_position(root: Path, first: int) -> None:
    items = [ask(f"testmini_{n - 1 + first}", f"Hint.\nHow many are {n}?") for n in (1, 2, 3)]
    samples = read(root, "mathvista", items, problems=THREE)
    assert [sample.references for sample in samples] == [("1",), ("2",), ("3",)]
    assert samples[0].metadata["answer_type"] == "integer"
    assert "choices" not in samples[0].metadata


def test_a_problem_with_options_keeps_them(root: Path) -> None:
    options = problem("Which?", "b", question_type="multi_choice", choices=["a", "b"])
    (sample,) = read(root, "mathvista", [ask("testmini_1", "Which?")], problems={"1": options})
    assert sample.metadata["choices"] == ["a", "b"]
    assert sample.references == ("b",)


@pytest.mark.parametrize(
    ("form", "item", "side", "message"),
    [
        ("mathvista", ask("x", "Which?"), {"problems": THREE}, "its id does not end in a number"),
        (
            "mathvista",
            ask("testmini_9", "Which?"),
            {"problems": THREE},
            "is not that of its problem",
        ),
        (
            "mathvista",
            ask("testmini_1", "Why?"),
            {"problems": {"1": problem("Why?", None)}},
            "has no 'answer'",
        ),
        ("mathvista", ask("testmini_1"), {"problems": []}, "problems.json: must hold an object"),
        ("mathvista", ask("testmini_1"), {}, "needs the side file 'problems'"),
        ("mmt_gui", ask("ALL_1"), {}, "has no answer, and no side file 'answers' is given"),
        ("mmt_gui", ask("ALL_1"), {"answers": {"ALL_2": "B"}}, "has no answer, in .*answers.json"),
        ("coin", ask(1), {}, "has no 'answer'"),
        ("coin", ask(1, image="b.png", answer="x"), {}, "b.png does not exist"),
        ("coin", None, {}, "holds no items|is empty|no samples"),
    ],
)
def test_an_odd_file_is_answered_in_one_line(
    root: Path, form: str, item: Any, side: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        read(root, form, [] if item is None else [item], **side)
    assert "\n" not in str(caught.value)


def test_letters_of_apps_are_in_the_file_or_beside_it(root: Path) -> None:
    items = [ask("ALL_1", answer="A"), ask("ALL_2")]
    samples = read(root, "mmt_gui", items, answers={"ALL_1": "C", "ALL_2": "B"})
    assert [sample.references for sample in samples] == [("A",), ("B",)]


def test_scienceqa_of_coin_asd_asks_for_a_letter_once(root: Path) -> None:
    problems = {"1": {"choices": ["x", "y"], "answer": 1}, "2": {"choices": ["x"], "answer": 0}}
    items = [ask("1"), ask("2", f"what?\n{LETTER_REQUEST}")]
    samples = read(root, "coin_asd_scienceqa", items, problems=problems)
    assert [sample.references for sample in samples] == [("B",), ("A",)]
    for sample in samples:
        assert sample.turns[0].text == f"<image>\nwhat?\n{LETTER_REQUEST}"
