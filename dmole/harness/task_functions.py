"""What the tasks of `dmole data export-tasks` compute in lmms-eval: prompts, images and scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from PIL import Image

from dmole.benchmarks.registry import PROFILED, build_metric
from dmole.data.decoding import ImageOptions, decode_bytes
from dmole.data.sample import IMAGE_PLACEHOLDER, Turn
from dmole.harness.conversations import to_messages
from dmole.metrics.base import PROFILES, Profile

Document = Mapping[str, Any]
"""A row of the exported data, see `dmole.harness.tasks.export_tasks`."""

Scored = Mapping[str, Any]
"""What one document adds to a score: metric, prediction, references and metadata."""


def doc_to_messages(doc: Document) -> list[dict[str, Any]]:
    """Return the conversation of a document, with images of PIL in mode RGB."""
    turns = [Turn(turn["role"], turn["text"]) for turn in doc["turns"]]
    return to_messages(turns, doc_to_visual(doc))


def doc_to_visual(doc: Document) -> list[Image.Image]:
    """Return the images of a document as dmole reads them, in mode RGB."""
    return [
        decode_bytes(
            image["content"],
            f"image {number} of {doc['id']}",
            ImageOptions(image["background"], image["apply_exif"]),
        )
        for number, image in enumerate(doc["images"])
    ]


def doc_to_text(doc: Document, lmms_eval_specific_kwargs: object = None) -> str:
    """Return the last user turn without its images, for models that take one text."""
    text: str = next(turn["text"] for turn in reversed(doc["turns"]) if turn["role"] == "user")
    return text.replace(IMAGE_PLACEHOLDER, "").strip()


def doc_to_target(doc: Document) -> str:
    """Return the first accepted answer."""
    return str(doc["references"][0])


def process_results(doc: Document, results: Sequence[str]) -> dict[str, Scored]:
    """Return what a document adds to each score.

    Args:
        doc: The document.
        results: The answer.
    """
    scored = {
        "metric": doc["metric"],
        "prediction": results[0],
        "references": list(doc["references"]),
        "metadata": json.loads(doc["metadata"]),
    }
    return dict.fromkeys(score_names(doc["metric"]), scored)


def score_names(metric: str) -> tuple[str, ...]:
    """Return the names of the scores of a task.

    Args:
        metric: Name of the metric.

    Example:
        >>> score_names("coin_grounding"), score_names("coin_grounding:corrected")
        (('published', 'corrected'), ('score',))
    """
    return PROFILES if metric in PROFILED else ("score",)


def aggregate(items: Sequence[Scored], profile: Profile | None = None) -> float:
    """Return the score of a task in percent, as dmole computes it.

    Args:
        items: What the documents add.
        profile: The profile of a metric with two.
    """
    metric = build_metric(items[0]["metric"], profile)
    columns = ([item[key] for item in items] for key in ("prediction", "references", "metadata"))
    return metric.score(*columns).value


aggregate_published = partial(aggregate, profile="published")
aggregate_corrected = partial(aggregate, profile="corrected")
