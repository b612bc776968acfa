"""Whether runs may stand in one table: the same data, base model, scoring and definitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from dmole.report.runs import Run, first_difference

_ASKED = ("prompt", "prompt_suffix", "max_new_tokens", "eval_only")
_FILES = ("train", "test", "format", "side_files", "image_root", "test_image_root")
_TRAINED = ("epochs", "repeat")


def check_alike(runs: Sequence[Run], allow: Sequence[str] = ()) -> list[str]:
    """Refuse runs whose numbers do not mean the same.

    Args:
        runs: The runs.
        allow: Names of `CHECKS` in which they may differ.

    Returns:
        What was found and allowed, one sentence for each check.

    Raises:
        ValueError: If a name is unknown, or two runs differ in what is not allowed; names both
            runs and what differs.
    """
    for name in allow:
        if name not in CHECKS:
            raise ValueError(f"no difference {name!r} to allow; there are {', '.join(CHECKS)}")
    allowed = []
    for name, find in CHECKS.items():
        found = next(find(runs), None)
        if found is None:
            continue
        if name not in allow:
            raise ValueError(f"{found}; --allow {name} compares them all the same")
        allowed.append(found)
    return allowed


def _unfinished(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        learned = run.learned_tasks
        if len(learned) < len(run.tasks_to_learn):
            yield (
                f"{run.folder} has learned {len(learned)} of {len(run.tasks_to_learn)} tasks: "
                "was it finished?"
            )


Difference = Callable[[Run, Run], str | None]


def _pairwise(difference: Difference) -> Callable[[Sequence[Run]], Iterator[str]]:
    def find(runs: Sequence[Run]) -> Iterator[str]:
        for one, other in combinations(runs, 2):
            if (what := difference(one, other)) is not None:
                yield f"{one.folder} and {other.folder} differ in {what}"

    return find


def _data(one: Run, other: Run) -> str | None:
    """Compare the digests of samples where both runs have them, else the files' names."""
    digests = [run.fingerprint("data") for run in (one, other)]
    known = all(isinstance(digest, Mapping) for digest in digests)
    for task in one.task_names if known else ():
        mine, theirs = (digest.get(task) or {} for digest in digests)
        for split in ("train", "test"):
            if mine.get(split) != theirs.get(split):
                pair = _pair(_short(mine.get(split)), _short(theirs.get(split)))
                return f"the {split} samples of task {task!r}: sha256 {pair}"
    return _task_settings(one, other, _ASKED if known else (*_FILES, *_ASKED))


def _base(one: Run, other: Run) -> str | None:
    """Compare the digests of the base models where both runs have them, else the settings."""
    mine, theirs = one.fingerprint("base"), other.fingerprint("base")
    if mine and theirs:
        same = mine == theirs
        return None if same else f"the base model: sha256 {_pair(_short(mine), _short(theirs))}"
    ours, others = (run.section("model").get("backbone") for run in (one, other))
    key = first_difference(ours, others) if ours and others else None
    if key is None:
        return None
    return f"model.backbone.{key}: {_pair(_at(ours, key), _at(others, key))}"


def _profile(one: Run, other: Run) -> str | None:
    """Compare each task's metric with its profile, and what it was computed with."""
    if (found := _task_settings(one, other, ("metric",), _plain_metric)) is not None:
        return found
    for task in one.task_names:
        mine, theirs = ((run.metrics.get("scoring") or {}).get(task) or {} for run in (one, other))
        for key in sorted(mine.keys() & theirs.keys()):
            if isinstance(mine[key], str) and mine[key] != theirs[key]:
                return f"the {key} of the metric of task {task!r}: {_pair(mine[key], theirs[key])}"
    return None


def _epochs(one: Run, other: Run) -> str | None:
    if 1 in (len(one.matrix), len(other.matrix)):
        return None  # nothing was trained
    return _task_settings(one, other, _TRAINED)


def _definitions(one: Run, other: Run) -> str | None:
    """Compare formula and scope; divisors follow from the number of stages, which may differ."""
    if 1 in (len(one.matrix), len(other.matrix)):
        return None  # figures of the base model alone
    mine, theirs = (run.metrics.get("definitions") or {} for run in (one, other))
    for name in mine.keys() & theirs.keys():
        texts = [_without_divisor(each[name]) for each in (mine, theirs)]
        if texts[0] != texts[1]:
            return f"the definition of {name}: {_pair(*texts)}"
    return None


CHECKS: dict[str, Callable[[Sequence[Run]], Iterator[str]]] = {
    "unfinished": _unfinished,
    "data": _pairwise(_data),
    "base": _pairwise(_base),
    "profile": _pairwise(_profile),
    "epochs": _pairwise(_epochs),
    "definitions": _pairwise(_definitions),
}
"""What makes runs incomparable, by the name that allows it; each yields what it finds."""


def _task_settings(
    one: Run, other: Run, keys: Sequence[str], read: Callable[[Any], Any] = lambda value: value
) -> str | None:
    """Return the first setting of a task in which two configs that both have it differ."""
    mine, theirs = one.task_configs, other.task_configs
    for task in one.task_names:
        ours, others = mine.get(task, {}), theirs.get(task, {})
        for key in keys:
            if key in ours and key in others and read(ours[key]) != read(others[key]):
                return f"the {key} of task {task!r}: {_pair(ours[key], others[key])}"
    return None


def _plain_metric(metric: Any) -> Any:
    """Return a metric's setting without the profile that it has anyway."""
    return metric.removesuffix(":published") if isinstance(metric, str) else metric


def _without_divisor(definition: Any) -> str:
    return "; ".join(part for part in str(definition).split("; ") if "divisor" not in part)


def _at(settings: Any, key: str) -> Any:
    for name in key.split(".") if key else ():
        settings = settings.get(name) if isinstance(settings, Mapping) else None
    return settings


def _short(digest: Any) -> str:
    return str(digest)[:12] if digest else "none"


def _pair(one: Any, other: Any) -> str:
    return f"{one} and {other}"


GIVEN = {
    "OracleRouter": "task identity given at test",
    "JointStream": "trained on all tasks at once",
}
"""Classes in a config that give a method what the others must do without, and what that is."""


def advantages(run: Run) -> list[str]:
    """Return what a run was given that a continual learner is not, as its config tells it."""
    found = {name.rpartition(".")[2] for name in _class_paths(run.config)}
    return [meaning for name, meaning in GIVEN.items() if name in found]


def _class_paths(settings: Any) -> Iterator[str]:
    if isinstance(settings, Mapping):
        if "class_path" in settings:
            yield str(settings["class_path"])
        settings = list(settings.values())
    if isinstance(settings, list):
        for value in settings:
            yield from _class_paths(value)


def check_repeat(first: Run, run: Run) -> None:
    """Refuse a run as a repeat of another if anything but the seed is another.

    Raises:
        ValueError: If a setting differs, or the number of stages, or the seed is the same.
    """
    both = f"{run.folder} and {first.folder} are both called {run.method!r}"
    if key := first_difference(first.config, run.config):
        raise ValueError(f"{both} but differ in {key}; give one another trainer.name")
    if len(run.matrix) != len(first.matrix):
        stages = f"{len(run.matrix) - 1} and {len(first.matrix) - 1} stages"
        raise ValueError(f"{both} but have {stages}: was each finished?")
    if run.seed is not None and run.seed == first.seed:
        raise ValueError(f"{both} and are of one seed, {run.seed}; give one of them only")


def same_tasks(first: Run, run: Run) -> None:
    """Refuse runs whose matrices have other columns.

    Raises:
        ValueError: If tasks or their order differ; names both runs.
    """
    if run.task_names != first.task_names:
        ours, theirs = ", ".join(run.task_names), ", ".join(first.task_names)
        raise ValueError(f"tasks differ: {run.folder} has {ours}; {first.folder} {theirs}")
