"""Run methods on a tiny sequence with the code of one source tree; `digests.py` starts it.

python experiments/digest_runs.py TREE OUTPUT METHOD [METHOD ...]

The package and its configs come from TREE, which PYTHONPATH must name. This script must not depend
on the layout of a tree, because it runs with the code of any commit.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

FINISHED = ".finished"
"""File in the folder of a method that marks a finished run."""

ENTRIES = ("dmole.cli.main", "dmole.cli")
"""Modules that hold the command line's `main`, the newest first."""

METHOD_FLAGS = {
    # thresholds that accept all: samples of two experts, and partners while an expert trains
    "dmole": ("--model.router.init_args.threshold_scale", "1000"),
    # a batch has to hold both replayed and held-out samples, of which there are few
    "replay_importance": ("--data.batch_size", "8"),
}
"""Flags without which a method would not do at this size what makes it that method."""


def settings() -> dict[str, Any]:
    """Return what makes quickstart.yaml tiny; a method that sets its dropout keeps it.

    Four steps for each of two tasks, two for a third, without which some methods are the same.
    Partial credit and a high learning rate let matrices differ between methods, and so digests.
    """
    tasks: list[dict[str, Any]] = [
        {"name": "caption", "metric": "rouge_l", "max_new_tokens": 6},
        {"name": "count", "max_new_tokens": 3},
        {"name": "paint", "max_new_tokens": 3},
    ]
    for task, train, test in zip(tasks, (16, 16, 8), (4, 4, 2), strict=True):
        task["train"] = f"synthetic://{task['name']}/train?size={train}"
        task["test"] = f"synthetic://{task['name']}/test?size={test}"
    return {
        "trainer": {"enable_progress_bar": False, "checkpoint_every_n_steps": 0},
        "model": {
            "dropout": 0.1,  # makes random draws affect the results
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
        "data": {"batch_size": 4, "eval_batch_size": 8, "tasks": tasks},
    }


def quicken() -> None:
    """Disable slow parts that do not affect the numbers: figures, disk syncs, threads."""
    import torch
    from matplotlib.figure import Figure
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    torch.set_num_threads(1)

    def save_blank(figure: Figure, file: Any, **options: Any) -> None:
        Image.new("1", (1, 1)).save(file, "PNG")  # a run reads its pictures again

    Figure.savefig = save_blank  # type: ignore[method-assign, assignment]
    SummaryWriter.add_figure = lambda *args, **options: None  # type: ignore[method-assign]
    os.fsync = lambda fd: None


def find_main(tree: Path) -> Callable[[list[str]], int]:
    """Return the command line of a source tree.

    Raises:
        SystemExit: If dmole is imported from another tree, or has no command line.
    """
    package = importlib.import_module("dmole")
    if not Path(str(package.__file__)).resolve().is_relative_to(tree.resolve()):
        raise SystemExit(f"dmole is imported from {package.__file__}, not from {tree}")
    for name in ENTRIES:
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:  # the parent is a module, not a package
            continue
        if spec is not None:
            main: Callable[[list[str]], int] = importlib.import_module(name).main
            return main
    raise SystemExit(f"{tree} has no command line in {' or '.join(ENTRIES)}")


def run(main: Callable[[list[str]], int], method: str, small: Path, output: Path) -> bool:
    """Run one method, and return whether it succeeded."""
    configs = ("quickstart.yaml", str(small), f"methods/{method}.yaml")
    arguments = ["fit", *(text for config in configs for text in ("--config", config))]
    arguments += ["--seed_everything", "0", "--trainer.default_root_dir", str(output)]
    arguments += ["--trainer.name", method, *METHOD_FLAGS.get(method, ())]
    try:
        succeeded = main(arguments) == 0
    except Exception:  # the other methods can still be compared
        traceback.print_exc()
        return False
    if succeeded:
        (output / method / FINISHED).touch()
    return succeeded


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tree", type=Path, help="source tree, the one in PYTHONPATH")
    parser.add_argument("output", type=Path, help="folder for the runs")
    parser.add_argument("methods", nargs="+", help="names of configs/methods")
    return parser.parse_args()


if __name__ == "__main__":
    options = parse()
    quicken()
    entry = find_main(options.tree)
    config = options.output / "small.yaml"
    config.write_text(yaml.safe_dump(settings()), encoding="utf-8")
    outcomes = [run(entry, method, config, options.output) for method in options.methods]
    raise SystemExit(not all(outcomes))
