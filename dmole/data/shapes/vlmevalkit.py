"""Rows of VLMEvalKit's tables: a question, its options and the letter of the right one."""

from __future__ import annotations

import ast
import math
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

from dmole.data.shapes.checks import short

_REFERENCE = 64
"""Maximum length of an ``image`` that is the index of another row; base64 is longer."""

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_USED = {"index", "question", "hint", "answer", "image", "image_path", *_LETTERS}


def is_table_row(row: Mapping[str, Any]) -> bool:
    """Return whether a row of a table has the columns of VLMEvalKit.

    Only a ``.tsv`` file is such a table: in a JSON file the same keys are a question.
    """
    return {"index", "question", "answer"} <= row.keys() and bool(
        {"image", "image_path"} & set(row)
    )


def table_items(
    rows: Iterable[Mapping[str, Any]],
    *,
    options_in_text: bool = True,
    needed: Container[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table as items of the shape ``question``.

    Columns: ``index``, ``question``, ``answer``; ``image`` (base64, the index of an earlier row,
    or a list of base64 texts) or ``image_path``; ``hint``, ``A``, ``B``, ... if there are any. All
    other columns stay in the item. Images are data URIs or paths.

    Args:
        rows: The rows in order, cells as text; a cell may also be None or NaN, if it is empty.
        options_in_text: Whether the text begins with the hint and ends with the options, one per
            line. A task with a prompt uses the question alone.
        needed: Indices of the rows whose images later rows name, see `named_rows`. By default
            the images of all rows stay in memory until the last row is read.

    Raises:
        ValueError: If a row is malformed. The message names the row by position and index.
    """
    images: dict[str, tuple[str, ...]] = {}
    for position, row in enumerate(rows):
        cells = {key: value for key, value in row.items() if not _is_empty(value)}
        index = _text(cells.get("index", position))
        try:
            if "index" not in cells:
                raise ValueError("has no 'index'")
            item = _item(cells, index, options_in_text)
            pictures = _pictures(cells, images)
        except ValueError as error:
            raise ValueError(f"row {position} (index {short(index)}): {error}") from error
        if needed is None or index in needed:
            images[index] = pictures
        yield item | ({"images": list(pictures)} if pictures else {})


def named_rows(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the indices that rows name in place of an image."""
    cells = (row.get("image") for row in rows)
    return {_text(cell) for cell in cells if not _is_empty(cell) and _is_reference(_text(cell))}


def _item(cells: Mapping[str, Any], index: str, options_in_text: bool) -> dict[str, Any]:
    if "question" not in cells:
        raise ValueError("has no 'question'")
    options = _options(cells)
    item: dict[str, Any] = {key: value for key, value in cells.items() if key not in _USED}
    question = _text(cells["question"])
    lines = [_text(cells["hint"])] if "hint" in cells else []
    lines += [question, *(f"{letter}. {text}" for letter, text in options.items())]
    item |= {
        "id": index,
        "text": "\n".join(lines) if options_in_text else question,
        "answer": _answer(cells, options),
    }
    if "hint" in cells:
        item["hint"] = _text(cells["hint"])
    if options:
        item["choices"] = list(options.values())
        item["answer_index"] = _LETTERS.index(item["answer"])
    return item


def _options(cells: Mapping[str, Any]) -> dict[str, str]:
    """Return the options by letter, from A without a gap."""
    options = {letter: _text(cells[letter]) for letter in _LETTERS if letter in cells}
    for expected, letter in zip(_LETTERS, options, strict=False):
        if letter != expected:
            raise ValueError(f"has the option {letter!r} but not {expected!r}")
    return options


def _answer(cells: Mapping[str, Any], options: Mapping[str, str]) -> str:
    if "answer" not in cells:
        raise ValueError("has no 'answer'")
    answer = _text(cells["answer"])
    if options and answer.strip() not in options:
        letters = ", ".join(options)
        raise ValueError(f"'answer' {short(answer)} is not the letter of an option ({letters})")
    return answer.strip() if options else answer


def _pictures(cells: Mapping[str, Any], images: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the images of a row: their content if the table holds it, else paths."""
    if "image" not in cells:
        return tuple(_list(_text(cells["image_path"]))) if "image_path" in cells else ()
    text = _text(cells["image"])
    if not _is_reference(text):
        return tuple(f"data:;base64,{content}" for content in _list(text))
    if text not in images:
        raise ValueError(f"its 'image' {text!r} is the index of no earlier row")
    return images[text]


def _is_reference(text: str) -> bool:
    return len(text) <= _REFERENCE and not text.startswith("[")


def _list(text: str) -> list[str]:
    """Return the texts of a list in one cell, or the single text."""
    if not (text.startswith("[") and text.endswith("]")):
        return [text]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
        raise ValueError(f"has a broken list of images: {short(text)}")
    return value


def _is_empty(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def _text(value: Any) -> str:
    """Return a cell as text; tables read by pandas hold integers as 7.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)
