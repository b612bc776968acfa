"""COCO caption files: images with several captions each."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from dmole.data.items import (
    Item,
    Numbered,
    SourceFiles,
    as_question,
    index_by,
    read_object,
)


def coco_caption_items(source: SourceFiles) -> Numbered:
    """Yield one item per image with all its captions, or one item per caption for training.

    A ``.jsonl`` file is read as conversations: D-MoLE trains on conversations and tests on COCO
    files.

    Source:
        gcd19/D-MoLE ``eval/caption/evaluate_caption.py``: ``images`` with ``id`` and
        ``file_name`` or ``image``, ``annotations`` with ``image_id`` and ``caption``.
    """
    if source.path.suffix == ".jsonl":
        yield from source.items()
        return
    content = read_object(source.path, "images", "annotations")
    captions = _captions(content["annotations"], source.path)
    images = index_by(content["images"], "id", source.path)
    position = 0
    for image_id, image in images.items():
        name = image.get("file_name", image.get("image"))
        if not isinstance(name, str):
            raise ValueError(f"{source.path}: image {image_id!r} has no 'file_name'")
        answers = captions.get(image_id)
        if not answers:
            raise ValueError(f"{source.path}: image {image_id!r} has no caption")
        for answer in answers if source.split == "train" else [answers]:
            yield position, {"question_id": image_id, "image": name, "answer": answer}
            position += 1


def caption_references(source: SourceFiles, path: Path) -> Numbered:
    """Yield the questions of a file with all captions of their images.

    Questions and entries are joined by the file name of the image. If the names do not match, they
    are paired by position: the ids are 1, 2, 3 ... in the order of the questions.

    Args:
        source: The questions.
        path: The COCO caption file.

    Raises:
        ValueError: If a question cannot be paired, or its image has no caption.

    Source:
        UCIT (Ghy0501/MCITlib, ``eval_caption.py``): predictions get ids 1, 2, 3 ... by line.
    """
    content = read_object(path, "images", "annotations")
    captions = _captions(content["annotations"], path)
    questions = list(source.items())
    ids = _paired_ids(questions, content["images"], path)
    for (index, item), image_id in zip(questions, ids, strict=True):
        if image_id is None:
            raise source.error(index, item, f"its image is not in {path}")
        if not captions.get(image_id):
            raise source.error(index, item, f"image {image_id!r} has no caption in {path}")
        try:
            yield index, as_question(item) | {"answer": captions[image_id]}
        except ValueError as error:
            raise source.error(index, item, str(error)) from error


def _paired_ids(
    questions: list[tuple[int, Item]], images: list[Item], path: Path
) -> list[str | None]:
    """Return the image id of each question, None if it has none."""
    by_name = {
        PurePosixPath(str(image.get("file_name", ""))).name: str(image.get("id"))
        for image in images
    }
    names = [PurePosixPath(str(item.get("image", ""))).name for _, item in questions]
    numbered = {str(image.get("id")) for image in images} == {
        str(number) for number in range(1, len(questions) + 1)
    }
    if numbered and not any(name in by_name for name in names):
        return [str(number) for number in range(1, len(questions) + 1)]
    if len(by_name) < len(images):
        raise ValueError(f"{path}: two images have one 'file_name', or have none")
    return [by_name.get(name) for name in names]


def _captions(annotations: list[Any], path: Path) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for position, entry in enumerate(annotations):
        text = entry.get("caption")
        if "image_id" not in entry or not isinstance(text, str):
            raise ValueError(f"{path}: annotation {position} has no 'image_id' or no 'caption'")
        if text.strip():
            captions.setdefault(str(entry["image_id"]), []).append(text)
    return captions
