"""Finds test questions that also occur in the training data, without opening an image."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence

from dmole.data.sample import IMAGE_PLACEHOLDER, FileImage, Sample

log = logging.getLogger("dmole")


def question_turns(sample: Sample) -> tuple[str, ...]:
    """Return the turns before the last answer, without image placeholders.

    They are equal for a training sample and a test sample made from the same item.
    """
    turns = sample.turns[:-1] if sample.turns[-1].role == "assistant" else sample.turns
    return tuple(turn.text.replace(IMAGE_PLACEHOLDER, "").strip() for turn in turns)


def stable_hash(*parts: str | bytes) -> int:
    """Return a 64-bit hash of texts, the same in every process."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest(), "little")


def warn_of_leakage(task: str, train: Iterable[Sample], test: Iterable[Sample]) -> None:
    """Log a warning if test samples share image files and question with a training sample.

    Samples with an image that is not a file, such as generated ones, are left out.

    Args:
        task: Name of the task.
        train: Its training samples.
        test: Its test samples.
    """
    trained = {key for sample in train if (key := _question_key(sample)) is not None}
    leaked = [sample.id for sample in test if _question_key(sample) in trained] if trained else []
    if leaked:
        log.warning(
            "task %s: %d test samples have the image and question of a training sample, "
            "the first is %r; `dmole data check` lists them",
            task,
            len(leaked),
            leaked[0],
        )


def _question_key(sample: Sample) -> int | None:
    paths = image_paths(sample)
    return None if paths is None else stable_hash(*paths, "", *question_turns(sample))


def image_paths(sample: Sample) -> Sequence[str] | None:
    """Return the image files of a sample, or None if one of its images is not a file."""
    paths = []
    for image in sample.images:
        if not isinstance(image, FileImage):
            return None
        paths.append(str(image.path))
    return paths
