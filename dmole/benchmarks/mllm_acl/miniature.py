"""Miniature of MLLM-ACL."""

from __future__ import annotations

from typing import Any

from dmole.benchmarks.mllm_acl.rules import FORMULA
from dmole.benchmarks.shared.miniature import (
    COLORS,
    LETTERS,
    QUESTION,
    Miniature,
    color,
    question,
    talk,
)

_MATH: tuple[dict[str, Any], ...] = (
    {"question_type": "multi_choice", "answer_type": "text", "choices": list(COLORS)},
    {"question_type": "free_form", "answer_type": "integer", "choices": None},
    {"question_type": "free_form", "answer_type": "float", "choices": None, "precision": 1.0},
    {"question_type": "multi_choice", "answer_type": "text", "choices": list(COLORS)},
)
"""Types of the four test problems."""


def write_mllm_acl(miniature: Miniature) -> None:
    """Write MLLM-ACL: four abilities, training and test data in folders of their own."""
    for task in ("OCR", "Math", "VP", "APP"):
        for split in ("train", "test"):
            folder = f"Ability_data/{task}{'_test' if split == 'test' else ''}"
            items = [_item(miniature, task, folder, split, n) for n in miniature.numbers(split)]
            miniature.json(f"{folder}/{split}.json", items)
    problems = {
        str(n + 1): {"question": _question(n), "answer": _answer("Math", n), **_MATH[n % 4]}
        for n in miniature.numbers("test")
    }
    miniature.json("Ability_data/Math_test/testmini.json", problems)


def _item(miniature: Miniature, task: str, folder: str, split: str, n: int) -> dict[str, Any]:
    image = miniature.picture(folder, f"images/{n}.png", n)
    if split == "train":
        return talk(n, image, QUESTION, _answer(task, n))
    if task == "Math":
        return question(f"testmini_{n + 1}", image, f"Hint: be brief.\nQuestion: {_question(n)}")
    more: dict[str, Any] = {"answer": _answer(task, n)}
    if task == "OCR":
        more["answer_type"] = FORMULA if n % 4 == 3 else "Regular Text Recognition"
    if task == "VP":
        more |= {"type": "2D", "task": "Count"}
    return question(f"ALL_{n}" if task == "APP" else n, image, QUESTION, **more)


def _question(n: int) -> str:
    return f"Problem {n}: what is the color, or its number?"


def _answer(task: str, n: int) -> str:
    if task == "APP":
        return LETTERS[n % 4]
    kind = _MATH[n % 4]["answer_type"] if task == "Math" else "text"
    return {"integer": str(n + 1), "float": f"{n + 0.5}", "text": color(n)}[kind]
