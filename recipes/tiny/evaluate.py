"""Measure a base model on fresh scenes: `python -m recipes.tiny.evaluate --samples 200`.

For the deep base model, which does not ship with the library, and tasks that it has not learned:

    python -m recipes.tiny.evaluate --base deep --model DIR/model --tasks
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dmole.data.sample import ArrayImage
from dmole.demo.tiny import TINY_PATH
from dmole.demo.world import synthetic_samples
from dmole.demo.world.needs import NEED_GENERATORS
from dmole.demo.world.questions import Question
from dmole.demo.world.world import Pixels
from dmole.metrics.boxes import BoxReader, intersection_over_union
from recipes.tiny.bases import BASES
from recipes.tiny.worlds import World

FRESH_SEED = 20261
"""Seed of the evaluation scenes; used nowhere else."""
BOX_KINDS = ("box", "text_box", "need_language_box")
MAX_NEW_TOKENS = 14


@dataclass(frozen=True)
class Case:
    """An image and a question about it."""

    pixels: Pixels
    question: Question


def fresh_cases(
    samples: int, seed: int, kinds: Sequence[str], world: World
) -> dict[str, list[Case]]:
    """Return `samples` cases per kind of question; a scene gives at most one case per kind."""
    rng = random.Random(f"evaluate-{seed}")
    cases: dict[str, list[Case]] = {kind: [] for kind in kinds}
    while any(len(of_kind) < samples for of_kind in cases.values()):
        scene = world.scene(rng)
        by_kind: dict[str, list[Question]] = {}
        for question in world.ask(rng, scene):
            by_kind.setdefault(question.kind, []).append(question)
        for kind, questions in by_kind.items():
            chosen = rng.choice(questions)
            if kind in cases and len(cases[kind]) < samples:
                cases[kind].append(Case(scene.pixels, chosen))
    return cases


def task_cases(name: str, samples: int) -> list[Case]:
    """Return the test samples of a synthetic task."""
    return [
        Case(sample.images[0].array, Question(name, sample.prompt, sample.references[0]))
        for sample in synthetic_samples(f"synthetic://{name}/test?size={samples}")
        if isinstance(sample.images[0], ArrayImage)
    ]


@torch.no_grad()
def answer(
    model: Any, processor: Any, pairs: Sequence[tuple[Pixels, str]], batch_size: int = 100
) -> list[str]:
    """Return greedy answers to questions about images.

    Args:
        model: The model in evaluation mode.
        processor: Its processor.
        pairs: Pixels and question of each case.
        batch_size: Questions per `generate` call.
    """
    answers: list[str] = []
    for start in range(0, len(pairs), batch_size):
        part = pairs[start : start + batch_size]
        prompts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}],
                add_generation_prompt=True,
            )
            for _, text in part
        ]
        inputs = processor(
            images=[Image.fromarray(pixels) for pixels, _ in part],
            text=prompts,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        tokens = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
    return answers


def score(cases: Sequence[Case], answers: Sequence[str]) -> dict[str, float]:
    """Return exact match and, for boxes, mean overlap and the share of overlaps of at least 0.5."""
    truths = [case.question.answer for case in cases]
    pairs = list(zip(answers, truths, strict=True))
    figures = {"exact": _percent([text == truth for text, truth in pairs])}
    if cases[0].question.kind in BOX_KINDS:
        overlaps = [_overlap(text, truth) for text, truth in pairs]
        figures["iou"] = _percent(overlaps)
        figures["iou_at_50"] = _percent([overlap >= 0.5 for overlap in overlaps])
    return figures


def _overlap(text: str, truth: str) -> float:
    reader = BoxReader(box_format="tokens")
    box, true_box = reader.read(text), reader.read(truth)
    if true_box is None:
        raise ValueError(f"{truth!r} holds no box")
    return 0.0 if box is None else intersection_over_union(box, true_box)


def _percent(values: Sequence[float]) -> float:
    return round(100 * sum(values) / len(values), 1)


def evaluate(
    path: Path, cases: Mapping[str, Sequence[Case]]
) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Yield each kind of question with its scores in percent.

    Args:
        path: Folder of the model.
        cases: The cases of each kind.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(path)
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    for kind, of_kind in cases.items():
        pairs = [(case.pixels, case.question.text) for case in of_kind]
        yield kind, score(of_kind, answer(model, processor, pairs))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and print one line of JSON per kind of question."""
    parser = argparse.ArgumentParser(description="Measure a base model on fresh scenes.")
    parser.add_argument("--base", choices=[*BASES], default="tiny", help="default: %(default)s")
    parser.add_argument("--model", type=Path, help="folder; default for tiny: the shipped model")
    parser.add_argument("--tasks", action="store_true", help="measure the tasks of needs.py, too")
    parser.add_argument("--samples", type=int, default=200, help="per kind (default 200)")
    parser.add_argument("--seed", type=int, default=FRESH_SEED, help="default: %(default)s")
    values = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if values.model is None and values.base != "tiny":
        parser.error(f"--model is required: the {values.base} base model is not shipped")
    world = BASES[values.base].world
    cases = fresh_cases(values.samples, values.seed, list(world.wordings), world)
    if values.tasks:
        cases |= {name: task_cases(name, values.samples) for name in NEED_GENERATORS}
    for kind, figures in evaluate(values.model or TINY_PATH, cases):
        print(json.dumps({"kind": kind, "samples": values.samples, **figures}), flush=True)


if __name__ == "__main__":
    main()
