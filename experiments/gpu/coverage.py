"""Every model family and every shipped method once: what fails, by name."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import dmole
from dmole.data import Task, open_source
from dmole.messages import one_line
from experiments.gpu.common import Row, Setting
from experiments.gpu.runs import CONFIGS, RunBuilder, tasks

METHODS = tuple(sorted(path.stem for path in (CONFIGS / "methods").glob("*.yaml")))


def test_models() -> tuple[tuple[str, ...], Callable[[str, Path], Path]]:
    """Return the families of the tests' tiny models, and what saves the model of a family."""
    folder = str(CONFIGS.parent / "tests")
    if folder not in sys.path:
        sys.path.append(folder)
    return import_module("families").FAMILIES, import_module("families.saved").save_family


def families(setting: Setting, only: tuple[str, ...] | None = None) -> Iterator[Row]:
    """Yield the families that fail to learn, evaluate or answer; then how many do not.

    Args:
        setting: Gives accelerator and folder.
        only: Families to run; None runs all.
    """
    names, save = test_models()
    builder = RunBuilder(setting)
    sample = open_source(Task("paint", test="synthetic://paint/test?size=1"), "test", Path())[0]

    def once(family: str) -> None:
        base = save(family, setting.folder / "models" / family)
        model = {"backbone.init_args.name_or_path": str(base), "projector_experts": True}
        run = builder.build(family, _data(1), model=model).fit()
        answering = dmole.load(run, device=setting.accelerator)
        answering.generate(sample.images[0].load(), sample.prompt, max_new_tokens=2)

    yield from _each(names if only is None else only, once, "families")


def methods(setting: Setting, only: tuple[str, ...] = METHODS) -> Iterator[Row]:
    """Yield the methods that fail to learn and evaluate two tasks; then how many do not."""
    builder = RunBuilder(setting)

    def once(method: str) -> None:
        builder.build(method, _data(2), method=method).fit()

    yield from _each(only, once, "methods")


def _data(count: int) -> dict[str, Any]:
    return {
        "tasks": tasks(("paint", "count")[:count], train=8, test=2, tokens=2),
        "batch_size": 4,
        "eval_batch_size": 8,
    }


def _each(names: tuple[str, ...], once: Callable[[str], None], kind: str) -> Iterator[Row]:
    failed = 0
    for name in names:
        print(time.strftime("%H:%M:%S"), kind, name, flush=True)  # shows where a stopped one was
        try:
            once(name)
        except Exception as error:  # any failure is a row of the report
            traceback.print_exc()
            failed += 1
            yield f"{name}: error", f"{type(error).__name__}: {one_line(error)}", _place(error)
    yield f"{kind} without an error", len(names) - failed, f"of {len(names)}"


def _place(error: Exception) -> str:
    """Return the innermost line of this project that an error passed through."""
    root = CONFIGS.parent
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(root / "dmole")]
    if not own:
        return ""
    return f"{Path(own[-1].filename).relative_to(root)}:{own[-1].lineno}"
