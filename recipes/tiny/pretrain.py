"""Make the tiny model from a seed: `python -m recipes.tiny.pretrain --output DIR --seed 0`.

Stage "eye" trains vision encoder and projector to recognize the content of every patch; stage
"all" trains the whole model on packed questions. The budget is a number of steps, so a rerun gives
the same model. DIR holds a checkpoint, from which the same command resumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from recipes.tiny.pretraining import CHECKPOINT, Pretraining, PretrainingSettings


def pretrain(
    settings: PretrainingSettings,
    output: Path,
    *,
    report_every: int = 50,
    stop_after: int | None = None,
) -> Path | None:
    """Train the tiny model, or resume its training, and save it.

    Args:
        settings: Settings that determine the outcome.
        output: Folder of the checkpoint and of the finished model.
        report_every: Number of steps between two reports; each prints a line and saves a
            checkpoint.
        stop_after: Number of steps after which this call saves a checkpoint and returns.

    Returns:
        Folder of the finished model; None if the call stopped before the end.
    """
    output.mkdir(parents=True, exist_ok=True)
    run = Pretraining(settings, output)
    if (output / CHECKPOINT).exists():
        run.load_checkpoint()
    recent: list[dict[str, float]] = []
    for done, figures in enumerate(run.run(), 1):
        recent.append(figures)
        if run.step % report_every == 0:
            means = {key: np.mean([row[key] for row in recent if key in row]) for key in figures}
            text = " ".join(f"{key} {value:.3f}" for key, value in means.items())
            print(f"{run.stage} step {run.step} cpu {run.cpu_seconds:.0f}s {text}", flush=True)
            recent.clear()
            run.save_checkpoint()
        if done == stop_after:
            run.save_checkpoint()
            return None
    run.save_checkpoint()
    return run.save_model()


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description="Make the tiny model from a seed.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    defaults = PretrainingSettings()
    for name, value in asdict(defaults).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(value), default=value, help="default: %(default)s")
    values = vars(parser.parse_args(arguments))
    output = values.pop("output")
    torch.set_num_threads(1)  # fixed order of sums: the result is reproducible on one machine
    print(pretrain(PretrainingSettings(**values), output))


if __name__ == "__main__":
    main()
