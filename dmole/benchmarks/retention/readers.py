"""Readers of POPE, MME and MMMU, which evaluate abilities of the base model."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from dmole.data.items import Item, Numbered, SourceFiles, letter_of
from dmole.data.prompts import lettered
from dmole.data.streaming import kind_of
from dmole.storage.files import read_text
from dmole.storage.records import read_records

MMMU_IMAGES = tuple(f"image_{number}" for number in range(1, 8))

# the prompts of LLaVA-1.5
_LETTER = "Answer with the option's letter from the given choices directly."
_SHORT = "Answer the question using a single word or phrase."


def pope_items(source: SourceFiles) -> Numbered:
    """Yield POPE's yes/no questions: JSON lines of ``question_id, image, text, label``.

    The published files end in ``.json`` but hold one object per line; both forms are read.

    Source:
        Li et al., 2023, https://arxiv.org/abs/2305.10355, ``output/coco/coco_pope_*.json``.
    """
    for index, item in _objects(source.path):
        label = item.get("label", item.get("answer"))
        if not isinstance(label, str) or label.strip().lower() not in ("yes", "no"):
            raise source.error(index, item, f"'label' must be yes or no, got {label!r}")
        yield index, item | {"answer": label.strip().lower()}


def mme_items(source: SourceFiles) -> Numbered:
    """Yield MME's questions from a folder with one ``<sub-task>.txt`` per sub-task.

    A line holds the image's name, the question and the answer, separated by tabs. A fourth column,
    which holds predictions in MME's tool, is not read. Images are in
    ``<image_root>/<sub-task>/``. The answer names the image, because accuracy+ is computed per
    image.

    Source:
        Fu et al., 2023, https://arxiv.org/abs/2306.13394, ``eval_tool``.
    """
    files = sorted(source.path.glob("*.txt")) if source.path.is_dir() else []
    if not files:
        raise ValueError(f"{source.path}: must be a folder with one .txt file per sub-task")
    position = 0
    for path in files:
        for number, line in enumerate(read_text(path, limit=None).split("\n"), start=1):
            if not line.strip():
                continue
            columns = [column.strip() for column in line.split("\t")]
            if len(columns) < 3 or columns[2].lower() not in ("yes", "no"):
                raise ValueError(
                    f"{path}, line {number}: expected image, question and Yes or No, "
                    "with tabs between them"
                )
            image, question, answer = columns[:3]
            yield (
                position,
                {
                    "question_id": f"{path.stem}/{number}",
                    "image": f"{path.stem}/{image}",
                    "text": question,
                    "answer": f"{answer} image={path.stem}/{image}",
                },
            )
            position += 1


def mmmu_items(source: SourceFiles) -> Numbered:
    """Yield MMMU's questions, exported from parquet to JSON with the images as files.

    The keys are ``id, question, options, answer`` and ``image_1`` to ``image_7`` (paths).
    ``options`` is a list, or its text as on the hub; without options the answer is open. Images
    precede the question, in order; the marks ``<image 1>`` in the text stay unchanged. Items get a
    key ``form``: the options, if any, and LLaVA-1.5's request for a letter or a word.

    Source:
        Yue et al., 2024, https://arxiv.org/abs/2311.16502.
    """
    for index, item in source.items():
        try:
            yield index, _mmmu_item(item)
        except ValueError as error:
            raise source.error(index, item, str(error)) from error


def _mmmu_item(item: Item) -> Item:
    options = _options(item.get("options"))
    images = [item[key] for key in MMMU_IMAGES if item.get(key)]
    made: Item = {key: value for key, value in item.items() if key not in MMMU_IMAGES}
    made |= {"image": images, "choices": options}
    answer = item.get("answer")
    if not options:
        return made | {"answer": str(answer), "form": _SHORT}
    letters = [letter_of(index, options) for index in range(len(options))]
    if answer not in letters:
        raise ValueError(f"answer {answer!r} is none of the letters {', '.join(letters)}")
    return made | {"form": f"{lettered(options)}\n{_LETTER}"}


def _options(value: Any) -> list[str]:
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise ValueError(f"'options' is no list: {value!r}") from error
    if value is not None and not isinstance(value, list):
        raise ValueError(f"'options' must be a list, got {kind_of(value)}")
    return [str(option) for option in value or []]


def _objects(path: Path) -> Numbered:
    """Yield the objects of a file of JSON or JSON lines."""
    records = read_records(path, limit=None)
    for index, item in enumerate(records.entries(lambda _: True) or []):
        if not isinstance(item, dict):
            raise ValueError(f"{records.where(index)} is {kind_of(item)}, not an object")
        yield index, item
