"""Command line: `python -m recipes.smollm2 --output DIR`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from recipes.smollm2.alignment import Alignment, AlignmentSettings
from recipes.smollm2.assembly import assemble, load_language_model, weights_file


def make(settings: AlignmentSettings, output: Path, *, report_every: int = 20) -> Path:
    """Assemble the model, train its projector and save both with a record of the training.

    Args:
        settings: Settings that determine the outcome.
        output: New or empty folder; `from_pretrained` can read the model from it.
        report_every: Number of steps between two printed lines.

    Returns:
        The folder.

    Raises:
        FileExistsError: If ``output`` is a file or a folder that is not empty.
        ModuleNotFoundError: If the weights or the reader of their format are not installed.
    """
    refuse_full(output)
    torch.manual_seed(settings.seed)
    model, processor = assemble(*load_language_model(weights_file()))
    steps = Alignment(model, processor, settings).run()
    return save_trained(model, processor, steps, asdict(settings), output, report_every)


def refuse_full(output: Path) -> None:
    """Raise unless a folder is new or empty.

    Raises:
        FileExistsError: If ``output`` is a file or a folder that is not empty.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists already and is not an empty folder")


def save_trained(
    model: Any,
    processor: Any,
    steps: Iterator[tuple[str, int, float]],
    settings: dict[str, Any],
    output: Path,
    report_every: int = 20,
) -> Path:
    """Train a model and save it in 16 bits with its processor and a record of the training.

    Args:
        model: The model.
        processor: Its processor.
        steps: Trains the model; yields phase, step and loss after each step.
        settings: Settings for the record.
        output: Folder to write to.
        report_every: Number of steps between two printed lines.

    Returns:
        The folder.
    """
    started, losses = time.process_time(), []
    for phase, step, loss in steps:
        losses.append(loss)
        if step % report_every == 0:
            mean, spent = sum(losses) / len(losses), time.process_time() - started
            print(f"{phase} step {step} loss {mean:.3f} cpu {spent:.0f}s", flush=True)
            losses.clear()
    model.half().save_pretrained(output)
    processor.save_pretrained(output)
    record = settings | {"cpu_seconds": round(time.process_time() - started, 1)}
    (output / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    return output


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and make the model."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.smollm2",
        description="Make a base model of the tiny vision encoder and SmolLM2-135M-Instruct.",
    )
    parser.add_argument("--output", type=Path, required=True, help="new folder to write to")
    for name, value in asdict(AlignmentSettings()).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(value), default=value, help="default: %(default)s")
    values = vars(parser.parse_args(arguments))
    output = values.pop("output")
    torch.set_num_threads(1)  # fixed order of sums: the result is reproducible on one machine
    try:
        print(make(AlignmentSettings(**values), output))
    except (FileExistsError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
