"""``dmole bundle``: what answers need of a finished run, as a folder to publish."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole.cli.arguments import ArgumentParser
from dmole.cli.trust import take_trusted
from dmole.messages import visible

if TYPE_CHECKING:
    from dmole.inference import RoutedModel


def run_bundle(words: list[str]) -> None:
    """Write experts, router and model card of a finished run into a folder to publish."""
    parser = ArgumentParser("dmole bundle", description=run_bundle.__doc__)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("output", type=Path, help="folder to make")
    add_card_arguments(parser)
    words, trusted = take_trusted(words)
    options = parser.parse_args(words)

    from dmole.publish.bundle import make_bundle

    make_bundle(
        options.run,
        options.output,
        base=options.base,
        licence=options.license,
        sources=data_sources(options.data_source),
        trusted=trusted,
    )
    print(visible(str(options.output)))


def add_card_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that fill the model card."""
    parser.add_argument("--license", help="licence of the experts, such as apache-2.0")
    parser.add_argument("--base", help="org/name of the base model, if the run names a folder")
    parser.add_argument(
        "--data_source",
        action="append",
        default=[],
        metavar="TASK=TEXT",
        help="where the data of a task come from; may be repeated",
    )


def data_sources(texts: Sequence[str]) -> dict[str, str]:
    """Return the values of ``--data_source`` by task.

    Raises:
        ValueError: If a value has another form, or a task is named twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        task, sign, source = text.partition("=")
        if not task or not sign or not source.strip():
            raise ValueError(f"--data_source must be TASK=TEXT, got {text!r}")
        if task in found:
            raise ValueError(f"--data_source names the task {task!r} twice")
        found[task] = source.strip()
    return found


def load_bundle(bundle: Path, words: list[str]) -> RoutedModel:
    """Return the model of a bundle.

    Args:
        bundle: The bundle.
        words: Further flags of the command line.

    Raises:
        ValueError: If a flag is unknown, or the bundle cannot be used.
    """
    parser = ArgumentParser("dmole predict BUNDLE")
    parser.add_argument("--base", help="folder or hub name of the base model")
    words, trusted = take_trusted(words)
    base = parser.parse_args(words).base

    from dmole.inference import load

    return load(bundle, base=base, trusted=trusted)


def predict_with_bundle(
    bundle: Path, prompts: Sequence[dict[str, Any]], max_new_tokens: int, words: list[str]
) -> list[dict[str, Any]]:
    """Answer prompts with a bundle, in the form of `dmole predict`.

    Args:
        bundle: The bundle.
        prompts: Each with ``prompt`` and optionally ``image``.
        max_new_tokens: Maximum number of tokens of an answer.
        words: Further flags of the command line.

    Raises:
        ValueError: If a flag is unknown, or the bundle or an image cannot be used.
    """
    from dmole.inference import make_request
    from dmole.routing import gate_set_name

    model = load_bundle(bundle, words)
    requests = [
        make_request(
            prompt["prompt"],
            prompt.get("image"),
            max_new_tokens=max_new_tokens,
            options=model.images,
        )
        for prompt in prompts
    ]
    answers = [model.answer([request])[0] for request in requests]
    return [
        {
            "id": str(index),
            "image": None if prompt.get("image") is None else str(prompt["image"]),
            "prompt": prompt["prompt"],
            "prediction": answer.text,
            "gate_set": gate_set_name(answer.experts),
        }
        for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
