"""Miniature of the nine tasks of D-MoLE."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from dmole.benchmarks.shared.miniature import (
    COLORS,
    LETTERS,
    QUESTION,
    SIDE,
    Miniature,
    coco_captions,
    color,
    talk,
)


def _train(miniature: Miniature, folder: str, name: str, question: str, answer: str) -> None:
    rows = []
    for n in miniature.numbers("train"):
        image = miniature.picture(".", f"data/{folder}/images/train/{n}.jpg", n)
        rows.append(talk(n, image, question, answer.format(color=color(n), letter=LETTERS[n % 4])))
    miniature.lines(f"data/{folder}/{name}.jsonl", rows)


def _captions(
    miniature: Miniature, folder: str, root: str, test: str, key: str = "file_name"
) -> None:
    request = "Provide a one-sentence caption for the provided image."
    _train(miniature, folder, "train", request, "a {color} picture")
    for n in miniature.numbers("test"):
        miniature.picture(root, f"{n}.jpg", n)
    miniature.json(f"data/{folder}/{test}", coco_captions(miniature, "{}.jpg", key))


def _questions(miniature: Miniature, folder: str, test: str, answers: Callable[[int], Any]) -> None:
    _train(miniature, folder, "train", f"{QUESTION} One word.", "{color}")
    miniature.lines(f"data/{folder}/{test}.jsonl", _rows(miniature, folder, answers))


def _rows(miniature: Miniature, folder: str, answers: Callable[[int], Any]) -> list[dict[str, Any]]:
    rows = []
    for n in miniature.numbers("test"):
        image = miniature.picture(".", f"data/{folder}/images/test/{n}.jpg", n)
        row = {"image": image, "question": QUESTION, "question_id": n, "answer": answers(n)}
        rows.append({key: value for key, value in row.items() if value is not None})
    return rows


def _choices(miniature: Miniature, folder: str, train: str, test: str) -> None:
    _train(miniature, folder, train, f"{QUESTION}\nA. red\nB. green\nC. blue\nD. white", "{letter}")
    rows = _rows(miniature, folder, lambda n: n % 4)
    miniature.lines(
        f"data/{folder}/{test}.jsonl", [row | {"choices": list(COLORS)} for row in rows]
    )


def _vizwiz(miniature: Miniature) -> None:
    _questions(miniature, "vizwiz", "vizwiz_val", lambda n: None)
    annotations = [
        {"question_id": n, "answers": [{"answer": color(n)}] * 9 + [{"answer": "unanswerable"}]}
        for n in miniature.numbers("test")
    ]
    miniature.json("data/vizwiz/vizwiz_val_annotations.json", {"annotations": annotations})


def _skvg(miniature: Miniature) -> None:
    text = "Based on the knowledge it is red.\nWhere is <ref>the color</ref>?"
    _train(miniature, "sk-vg", "train", text, "[[100, 200, 600, 800]]")
    phrase = {"sent": "the color", "knowledge": "the picture has one color"}
    box = {"bbox": [3, 6, 19, 26], "width": SIDE, "height": SIDE}
    images = [row["image"] for row in _rows(miniature, "sk-vg", lambda n: None)]
    rows = [{"image": image} | phrase | box for image in images]
    miniature.lines("data/sk-vg/test.jsonl", rows)


_TASKS: tuple[Callable[[Miniature], None], ...] = (
    partial(
        _captions,
        folder="vizwiz-caption",
        root="data/vizwiz-caption/images/val",
        test="val.json",
    ),
    _skvg,
    partial(
        _captions, folder="textcaps", root="data/textcaps/images", test="val.json", key="image"
    ),
    partial(
        _choices,
        folder="iconqa",
        train="multi_text_choice_train",
        test="multi_text_choice_test",
    ),
    partial(_questions, folder="ocrvqa", test="ocrvqa_val", answers=color),
    partial(
        _captions,
        folder="flickr30k",
        root="data/flickr30k",
        test="flickr30k_test_karpathy.json",
    ),
    _vizwiz,
    partial(_questions, folder="kvqa", test="test", answers=lambda n: [color(n), "a color"]),
    partial(_choices, folder="pmcvqa", train="train", test="test_clean"),
)
"""Writers of the tasks, in their order."""


def write_cmit(miniature: Miniature) -> None:
    """Write the nine tasks: conversations for training, files of D-MoLE for testing."""
    for write in _TASKS:
        write(miniature)
