"""Checks that runs are comparable: the same data, base model, scoring and definitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from dmole.models.identity import NUMERICS, changed_parts
from dmole.report.runs import Run
from dmole.report.settings import first_difference

_PROMPT_KEYS = ("prompt", "prompt_suffix", "max_new_tokens", "eval_only")
_FILE_KEYS = ("train", "test", "format", "side_files", "image_root", "test_image_root")
_EPOCH_KEYS = ("epochs", "repeat")


def check_comparable(runs: Sequence[Run], allow: Sequence[str] = ()) -> list[str]:
    """Refuse runs whose numbers are not comparable.

    Args:
        runs: The runs.
        allow: Names of `CHECKS` in which the runs may differ.

    Returns:
        The allowed differences, one sentence for each check that failed.

    Raises:
        ValueError: If a name is unknown, or two runs differ in a check that is not allowed. The
            message names both runs and the difference.
    """
    for name in allow:
        if name not in CHECKS:
            raise ValueError(
                f"unknown difference {name!r} to allow; choose from {', '.join(CHECKS)}"
            )
    allowed = []
    for name, find in CHECKS.items():
        message = next(find(runs), None)
        if message is None:
            continue
        if name not in allow:
            raise ValueError(f"{message}; --allow {name} compares them anyway")
        allowed.append(message)
    return allowed


def _unfinished(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        learned, tasks = run.progress
        if learned < tasks:
            yield f"{run.folder} has learned {learned} of {tasks} tasks: did it finish?"


Difference = Callable[[Run, Run], str | None]


def _pairwise(difference: Difference) -> Callable[[Sequence[Run]], Iterator[str]]:
    def find(runs: Sequence[Run]) -> Iterator[str]:
        for one, other in combinations(runs, 2):
            if (text := difference(one, other)) is not None:
                yield f"{one.folder} and {other.folder} differ in {text}"

    return find


def _data(one: Run, other: Run) -> str | None:
    """Compare the digests of the samples if both runs have them, else the names of the files."""
    digests = [run.fingerprint("data") for run in (one, other)]
    have_digests = all(isinstance(digest, Mapping) for digest in digests)
    for task in _all_tasks(one, other) if have_digests else ():
        left, right = (digest.get(task) or {} for digest in digests)
        for split in ("train", "test"):
            if left.get(split) != right.get(split):
                pair = _pair(_short(left.get(split)), _short(right.get(split)))
                return f"the {split} samples of task {task!r}: sha256 {pair}"
    keys = _PROMPT_KEYS if have_digests else (*_FILE_KEYS, *_PROMPT_KEYS)
    return _task_settings(one, other, keys)


def _eval_limit(one: Run, other: Run) -> str | None:
    """Compare the numbers of test samples that were scored; the draws of seeds may differ."""
    limits = [None if run.subsample is None else run.subsample.limit for run in (one, other)]
    if limits[0] == limits[1]:
        return None
    texts = ("all" if limit is None else f"at most {limit} a task" for limit in limits)
    return f"the test samples that were scored (eval_limit): {_pair(*texts)}"


def _evaluated(one: Run, other: Run) -> str | None:
    """Compare the tasks that were evaluated, by which figures are defined or missing."""
    if one.evaluated == other.evaluated or 1 in (len(one.matrix), len(other.matrix)):
        return None
    return (
        f"the tasks that were evaluated (trainer.evaluate): {_pair(one.evaluated, other.evaluated)}"
    )


def _base(one: Run, other: Run) -> str | None:
    """Compare the digests of the base models if both runs have them, else the settings."""
    left, right = one.fingerprint("base"), other.fingerprint("base")
    if left and right:
        if left != right:
            return f"the base model: sha256 {_pair(_short(left), _short(right))}"
        return _base_part(one, other)
    left, right = (run.section("model").get("backbone") for run in (one, other))
    key = first_difference(left, right) if left and right else None
    if key is None:
        return None
    return f"model.backbone.{key}: {_pair(_at(left, key), _at(right, key))}"


def _base_part(one: Run, other: Run) -> str | None:
    """Compare the parts of the base models that both runs recorded, without their rounding."""
    parts = [run.fingerprint("base_parts") for run in (one, other)]
    if not all(isinstance(each, Mapping) for each in parts):
        return None
    known = {name: part for name, part in parts[1].items() if isinstance(part, Mapping)}
    changes = changed_parts(parts[0], {k: dict(v) for k, v in known.items() if k != NUMERICS})
    return next((f"the base model: {text}" for text in changes.values()), None)


def _profile(one: Run, other: Run) -> str | None:
    """Compare the metric of each task, its profile, and the tools that computed it."""
    if (text := _task_settings(one, other, ("metric",), _plain_metric)) is not None:
        return text
    for task in one.task_names:
        left, right = ((run.metrics.get("scoring") or {}).get(task) or {} for run in (one, other))
        for key in sorted(left.keys() & right.keys()):
            if isinstance(left[key], str) and left[key] != right[key]:
                return f"the {key} of the metric of task {task!r}: {_pair(left[key], right[key])}"
    return None


def _epochs(one: Run, other: Run) -> str | None:
    if 1 in (len(one.matrix), len(other.matrix)):
        return None  # nothing was trained
    return _task_settings(one, other, _EPOCH_KEYS)


def _definitions(one: Run, other: Run) -> str | None:
    """Compare formula and scope; the divisor follows from the number of stages and may differ."""
    if 1 in (len(one.matrix), len(other.matrix)):
        return None  # figures of the base model alone
    left, right = (run.metrics.get("definitions") or {} for run in (one, other))
    for name in left.keys() & right.keys():
        texts = [_without_divisor(each[name]) for each in (left, right)]
        if texts[0] != texts[1]:
            return f"the definition of {name}: {_pair(*texts)}"
    return None


CHECKS: dict[str, Callable[[Sequence[Run]], Iterator[str]]] = {
    "unfinished": _unfinished,
    "data": _pairwise(_data),
    "eval_limit": _pairwise(_eval_limit),
    "evaluate": _pairwise(_evaluated),
    "base": _pairwise(_base),
    "profile": _pairwise(_profile),
    "epochs": _pairwise(_epochs),
    "definitions": _pairwise(_definitions),
}
"""Checks by the name that ``--allow`` takes; each yields one message per difference."""


def _task_settings(
    one: Run, other: Run, keys: Sequence[str], read: Callable[[Any], Any] = lambda value: value
) -> str | None:
    """Return the first difference in a task setting that both configs have, if there is one."""
    for task in _all_tasks(one, other):
        left, right = (run.task_configs.get(task, {}) for run in (one, other))
        for key in keys:
            if key in left and key in right and read(left[key]) != read(right[key]):
                return f"the {key} of task {task!r}: {_pair(left[key], right[key])}"
    return None


def _all_tasks(one: Run, other: Run) -> list[str]:
    """Return the tasks of the matrix, then those without a column: updates without test samples."""
    updates = [
        name
        for run in (one, other)
        for name, task in run.task_configs.items()
        if task.get("update") and name not in one.task_names
    ]
    return list(dict.fromkeys([*one.task_names, *updates]))


def _plain_metric(metric: Any) -> Any:
    """Return the setting of a metric without the profile ``published``, which is the default."""
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
    "JointStream": "trained on all tasks at once",
    "OracleRouter": "task identity given at test",
}
"""Advantage over a continual learner by the class in the config that gives it."""

MARKS = {GIVEN["JointStream"]: "†", GIVEN["OracleRouter"]: "‡"}
"""Footnote mark of each advantage. A mark has one meaning, whichever methods are in the table."""


def advantages(run: Run) -> list[str]:
    """Return the advantages over a continual learner that the config of a run gives it."""
    classes = {name.rpartition(".")[2] for name in _class_paths(run.config)}
    return [meaning for name, meaning in GIVEN.items() if name in classes]


def _class_paths(settings: Any) -> Iterator[str]:
    if isinstance(settings, Mapping):
        if "class_path" in settings:
            yield str(settings["class_path"])
        settings = list(settings.values())
    if isinstance(settings, list):
        for value in settings:
            yield from _class_paths(value)


def check_repeat(first: Run, run: Run) -> None:
    """Refuse a run as a repeat of another unless the seed differs and nothing else does.

    Raises:
        ValueError: If a setting or the number of stages differs, or the seeds are equal.
    """
    both = f"{run.folder} and {first.folder} are both called {run.method!r}"
    if key := first_difference(first.config, run.config):
        raise ValueError(f"{both} but differ in {key}; change trainer.name of one of them")
    if len(run.matrix) != len(first.matrix):
        stages = f"{len(run.matrix) - 1} and {len(first.matrix) - 1} stages"
        raise ValueError(f"{both} but have {stages}: did both finish?")
    if run.seed is not None and run.seed == first.seed:
        raise ValueError(f"{both} and have the same seed, {run.seed}; give only one of them")


def same_tasks(first: Run, run: Run) -> None:
    """Refuse runs whose matrices have different columns.

    Raises:
        ValueError: If the tasks or their order differ. The message names both runs.
    """
    if run.task_names != first.task_names:
        left, right = ", ".join(run.task_names), ", ".join(first.task_names)
        raise ValueError(f"tasks differ: {run.folder} has {left}; {first.folder} has {right}")
