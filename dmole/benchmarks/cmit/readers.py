"""Readers of D-MoLE's evaluation files: multiple choice, SK-VG and VizWiz."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from dmole.benchmarks.shared.answers import SideAnswers, with_answers
from dmole.data.items import Item, Numbered, SourceFiles, choices_of, index_by, letter_of
from dmole.data.streaming import kind_of
from dmole.storage.files import read_json


def choice_items(source: SourceFiles) -> Numbered:
    """Yield questions with ``choices`` and the index of the right one; the answer is its letter.

    Source:
        gcd19/D-MoLE ``eval/vqa/evaluate_multi_choice.py``: IconQA and PMC-VQA.
    """
    for index, item in source.items():
        if "conversations" in item:
            yield index, item
            continue
        try:
            choices = list(choices_of(item))
            letter = letter_of(item.get("answer"), choices)
        except ValueError as error:
            raise source.error(index, item, str(error)) from error
        yield index, item | {"choices": choices, "answer": letter}


def skvg_items(source: SourceFiles) -> Numbered:
    """Yield phrases to locate; the answer is the box in pixels with the size of the image.

    Source:
        gcd19/D-MoLE ``eval/refcoco/evaluate_grounding.py``: ``sent``, ``knowledge``, ``bbox`` as
        two corners in pixels, ``width``, ``height``.
    """
    for index, item in source.items():
        if "conversations" in item:
            yield index, item
            continue
        try:
            box = _numbers(item, item.get("bbox"), 4, "bbox")
            size = _numbers(item, [item.get("width"), item.get("height")], 2, "width' and 'height")
        except ValueError as error:
            raise source.error(index, item, str(error)) from error
        corners = ", ".join(f"{value:g}" for value in box)
        answer = f"[{corners}] size={size[0]:g}x{size[1]:g}"
        rest = {key: value for key, value in item.items() if key != "bbox"}
        yield index, rest | {"answer": answer, "size": size, "answer_bbox": box}


def _numbers(item: Item, values: Any, count: int, name: str) -> list[float]:
    good = isinstance(values, list) and len(values) == count
    if not good or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        raise ValueError(f"'{name}' must be {count} numbers, got {values!r}")
    if count == 2 and min(values) <= 0:
        raise ValueError(f"'{name}' must be positive, got {values!r}")
    return list(values)


def vizwiz_items(source: SourceFiles) -> Numbered:
    """Yield VizWiz questions with the ten human answers of ``annotations``.

    The side file has the form of VQAv2 (``annotations`` by ``question_id``) or of VizWiz (a list
    of entries by ``image``).

    Source:
        gcd19/D-MoLE ``eval/vqa/evaluate_vqa.py``; vizwiz.org.
    """
    path = source.side_files.get("annotations")
    if source.split == "train" or path is None or isinstance(read_json(path, limit=None), dict):
        yield from with_answers(source, "annotations", _human_answers)
        return
    content = read_json(path, limit=None)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise ValueError(f"{path}: must hold a list of objects, but holds {kind_of(content)}")
    side = SideAnswers(path, index_by(content, "image", path), _human_answers)
    for index, item in source.items():
        yield (
            index,
            side.answer(source, index, item, PurePosixPath(str(item.get("image", ""))).name),
        )


def _human_answers(entry: Item) -> Any:
    answers = entry.get("answers")
    if not isinstance(answers, list):
        return None
    return [a.get("answer") if isinstance(a, dict) else a for a in answers]
