"""The nine tasks of D-MoLE, and the retention benchmarks, in miniature."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from dmole.benchmarks.layouts.miniature import COLORS, Writer, coco_captions, color, talk

_QUESTION = "What color is the picture?"
_SIDE = 32


def _train(writer: Writer, folder: str, name: str, question: str, answer: str) -> None:
    rows = []
    for n in writer.numbers("train"):
        image = writer.picture(".", f"data/{folder}/images/train/{n}.jpg", n)
        rows.append(talk(n, image, question, answer.format(color=color(n), letter="ABCD"[n % 4])))
    writer.lines(f"data/{folder}/{name}.jsonl", rows)


def _captions(writer: Writer, folder: str, root: str, test: str, key: str = "file_name") -> None:
    request = "Provide a one-sentence caption for the provided image."
    _train(writer, folder, "train", request, "a {color} picture")
    for n in writer.numbers("test"):
        writer.picture(root, f"{n}.jpg", n)
    writer.json(f"data/{folder}/{test}", coco_captions(writer, "{}.jpg", key))


def _questions(writer: Writer, folder: str, test: str, answers: Callable[[int], Any]) -> None:
    _train(writer, folder, "train", f"{_QUESTION} One word.", "{color}")
    writer.lines(f"data/{folder}/{test}.jsonl", _rows(writer, folder, answers))


def _rows(writer: Writer, folder: str, answers: Callable[[int], Any]) -> list[dict[str, Any]]:
    rows = []
    for n in writer.numbers("test"):
        image = writer.picture(".", f"data/{folder}/images/test/{n}.jpg", n)
        row = {"image": image, "question": _QUESTION, "question_id": n, "answer": answers(n)}
        rows.append({key: value for key, value in row.items() if value is not None})
    return rows


def _choices(writer: Writer, folder: str, train: str, test: str) -> None:
    _train(writer, folder, train, f"{_QUESTION}\nA. red\nB. green\nC. blue\nD. white", "{letter}")
    rows = _rows(writer, folder, lambda n: n % 4)
    writer.lines(f"data/{folder}/{test}.jsonl", [row | {"choices": list(COLORS)} for row in rows])


def _vizwiz(writer: Writer) -> None:
    _questions(writer, "vizwiz", "vizwiz_val", lambda n: None)
    annotations = [
        {"question_id": n, "answers": [{"answer": color(n)}] * 9 + [{"answer": "unanswerable"}]}
        for n in writer.numbers("test")
    ]
    writer.json("data/vizwiz/vizwiz_val_annotations.json", {"annotations": annotations})


def _skvg(writer: Writer) -> None:
    text = "Based on the knowledge it is red.\nWhere is <ref>the color</ref>?"
    _train(writer, "sk-vg", "train", text, "[[100, 200, 600, 800]]")
    phrase = {"sent": "the color", "knowledge": "the picture has one color"}
    place = {"bbox": [3, 6, 19, 26], "width": _SIDE, "height": _SIDE}
    images = [row["image"] for row in _rows(writer, "sk-vg", lambda n: None)]
    rows = [{"image": image} | phrase | place for image in images]
    writer.lines("data/sk-vg/test.jsonl", rows)


TASKS: tuple[Callable[[Writer], None], ...] = (
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


def write_retention(writer: Writer) -> None:
    """Write POPE, MME and MMMU."""
    rows, lines, items = [], [], []
    for n in writer.numbers("test"):
        image = writer.picture("retention/pope/val2014", f"{n}.jpg", n)
        asked = f"Is it {COLORS[0]}?"
        rows.append({"question_id": n, "image": image, "text": asked, "label": _yes(n == 0)})
        image = writer.picture("retention/mme/images/color", f"{n}.jpg", n)
        for other in (n, n + 1):  # two questions an image, one of each answer
            asked = f"Is it {color(other)}? Please answer yes or no."
            lines.append(f"{image}\t{asked}\t{_yes(other == n).title()}\n")
        image = writer.picture("retention/mmmu", f"images/{n}.png", n)
        item = {"id": f"dev_{n}", "question": f"<image 1> {_QUESTION}", "image_1": image}
        options = {"options": str(list(COLORS)), "answer": "ABCD"[n % 4]}
        items.append(item | (options if n else {"options": "[]", "answer": color(n)}))
    for kind in ("random", "popular", "adversarial"):
        writer.lines(f"retention/pope/coco_pope_{kind}.json", rows)
    writer.text("retention/mme/questions/color.txt", "".join(lines))
    writer.json("retention/mmmu/validation.json", items)


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"
