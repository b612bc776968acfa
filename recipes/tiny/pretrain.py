"""Make a base model from a seed: `python -m recipes.tiny.pretrain --output DIR --seed 0`.

Stage "eye" trains vision encoder and projector to recognize the content of every patch; stage
"all" trains the whole model on packed questions. The budget is a number of steps, so a rerun gives
the same model. DIR holds a checkpoint, from which the same command resumes, and `log.jsonl`, with
losses and the share of exact answers by kind of question. The scenes of a step are never seen
before, so the shares are those of fresh scenes.

`--base deep` makes the deep base model.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from recipes.tiny.bases import BASES, Base, PretrainingSettings
from recipes.tiny.pretraining import CHECKPOINT, EXACT, Pretraining

LOG = "log.jsonl"


def pretrain(
    base: Base,
    output: Path,
    *,
    report_every: int = 50,
    stop_after: int | None = None,
) -> Path | None:
    """Train a base model, or resume its training, and save it.

    Args:
        base: The base model, with the settings that determine the outcome.
        output: Folder of the checkpoint and of the finished model.
        report_every: Number of steps between two reports; each prints a line, saves a checkpoint
            and appends to the log.
        stop_after: Number of steps after which this call saves a checkpoint and returns.

    Returns:
        Folder of the finished model; None if the call stopped before the end.
    """
    output.mkdir(parents=True, exist_ok=True)
    run = Pretraining(base, output)
    if (output / CHECKPOINT).exists():
        run.load_checkpoint()
    recent: list[dict[str, float]] = []
    for done, figures in enumerate(run.run(), 1):
        recent.append(figures)
        if run.step % report_every == 0:
            run.save_checkpoint()
            _report(run, recent)
            recent.clear()
        if done == stop_after:
            run.save_checkpoint()
            return None
    run.save_checkpoint()
    return run.save_model()


def _report(run: Pretraining, recent: Sequence[Mapping[str, float]]) -> None:
    """Print the means of the figures of recent steps, and append them to the log."""
    values: dict[str, list[float]] = defaultdict(list)
    for figures in recent:
        for key, value in figures.items():
            values[key].append(value)
    means = {key: float(np.mean(of_key)) for key, of_key in values.items()}
    text = " ".join(f"{key} {mean:.3f}" for key, mean in means.items() if EXACT not in key)
    print(f"{run.stage} step {run.step} cpu {run.cpu_seconds:.0f}s {text}", flush=True)
    place = {"stage": run.stage, "step": run.step, "cpu_seconds": round(run.cpu_seconds, 1)}
    rounded = {key: round(mean, 4) for key, mean in means.items()}
    with (run.output / LOG).open("a", encoding="utf-8") as log:
        log.write(json.dumps(place | rounded) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description="Make a base model from a seed.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--base", choices=[*BASES], default="tiny", help="default: %(default)s")
    # on one thread the order of sums is fixed: the result is reproducible on one machine
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--report-every", type=int, default=50, help="steps; default: %(default)s")
    for name, value in asdict(PretrainingSettings()).items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(value), help="default: that of the base model")
    values = vars(parser.parse_args(arguments))
    base, output = BASES[values.pop("base")], values.pop("output")
    torch.set_num_threads(values.pop("threads"))
    report_every = values.pop("report_every")
    changed = {name: value for name, value in values.items() if value is not None}
    base = replace(base, settings=replace(base.settings, **changed))
    print(pretrain(base, output, report_every=report_every))


if __name__ == "__main__":
    main()
