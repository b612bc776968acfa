"""All benchmarks, and the names of layouts and metrics in configs and on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from importlib import import_module
from pkgutil import iter_modules
from typing import TypeVar

from dmole import benchmarks as room
from dmole.benchmarks.benchmark import Benchmark
from dmole.benchmarks.metrics import ProfiledMetric, RuleMetric
from dmole.benchmarks.shared.rule import Rule
from dmole.benchmarks.shared.text_distance import ANLS, ANLS_UNCUT, RELAXED
from dmole.data.items import SourceFiles
from dmole.data.layout import Layout
from dmole.metrics.base import PROFILES, Profile, TaskMetric
from dmole.metrics.task_metrics import (
    BLEU4,
    METEOR,
    ROUGEL,
    CIDEr,
    Contains,
    ExactMatch,
    IoU,
    VQASoft,
)

Entry = TypeVar("Entry")

_GENERAL = "dmole itself"
"""Owner of the names that belong to no benchmark, in messages."""

_AUTO = Layout(
    items=SourceFiles.items,
    does="conversations or questions with their answers; ids must differ",
    published=False,
)
_RULES: dict[str, Rule] = {"anls": ANLS, "anls_uncut": ANLS_UNCUT, "relaxed_accuracy": RELAXED}
_METRICS: dict[str, type[TaskMetric]] = {
    "bleu_4": BLEU4,
    "cider": CIDEr,
    "contains": Contains,
    "exact_match": ExactMatch,
    "iou": IoU,
    "meteor": METEOR,
    "rouge_l": ROUGEL,
    "vqa_soft": VQASoft,
}


def find_benchmarks(package: str, folders: Iterable[str]) -> dict[str, Benchmark]:
    """Return the benchmark of each folder of a package, in the order of their papers.

    Every folder except ``shared`` holds one; its ``__init__.py`` defines it as ``BENCHMARK``.

    Args:
        package: Name of the package.
        folders: Parent folders of the benchmarks' folders.

    Raises:
        ValueError: If a folder defines no benchmark, or two benchmarks have the same name.
    """
    owners: list[tuple[str, dict[str, Benchmark]]] = []
    for module in iter_modules(folders):
        if not module.ispkg or module.name == "shared":
            continue
        name = f"{package}.{module.name}"
        benchmark = getattr(import_module(name), "BENCHMARK", None)
        if not isinstance(benchmark, Benchmark):
            raise ValueError(f"{name} has no BENCHMARK, so it is not the folder of a benchmark")
        owners.append((name, {benchmark.name: benchmark}))
    merged = merge_names("benchmark", owners)
    order = sorted(merged.values(), key=lambda each: (each.arxiv or "none", each.name))
    return {each.name: each for each in order}


def merge_names(kind: str, owners: Iterable[tuple[str, Mapping[str, Entry]]]) -> dict[str, Entry]:
    """Return the entries of all owners by name, in alphabetical order.

    Args:
        kind: Kind of the entries, for the error.
        owners: Each owner with its entries.

    Raises:
        ValueError: If two owners define the same name; the message names both.
    """
    merged: dict[str, Entry] = {}
    owner_of: dict[str, str] = {}
    for owner, entries in owners:
        for name, entry in entries.items():
            if name in merged:
                raise ValueError(f"both {owner_of[name]} and {owner} define the {kind} {name!r}")
            merged[name], owner_of[name] = entry, owner
    return dict(sorted(merged.items()))


BENCHMARKS = find_benchmarks(room.__name__, room.__path__)
"""All benchmarks by name, in the order of their papers."""

LAYOUTS = merge_names(
    "format",
    [(_GENERAL, {"auto": _AUTO}), *((b.name, b.formats) for b in BENCHMARKS.values())],
)
"""Layouts by name, the value of a task's ``format``."""

_ALL_METRICS: dict[str, Rule | type[TaskMetric]] = merge_names(
    "metric",
    [
        (_GENERAL, {**_RULES, **_METRICS}),
        *((b.name, b.metrics) for b in BENCHMARKS.values()),
    ],
)

RULES: dict[str, Rule] = {
    name: entry for name, entry in _ALL_METRICS.items() if isinstance(entry, Rule)
}
"""Rules that score one answer, each in published and corrected form."""

PROFILED: dict[str, Callable[..., ProfiledMetric]] = {
    name: partial(RuleMetric, name) for name in RULES
} | {
    name: entry
    for name, entry in _ALL_METRICS.items()
    if isinstance(entry, type) and issubclass(entry, ProfiledMetric)
}
"""Metrics with a published and a corrected profile."""

GENERAL: dict[str, Callable[[], TaskMetric]] = {
    name: entry
    for name, entry in _ALL_METRICS.items()
    if not isinstance(entry, Rule) and name not in PROFILED
}
"""Metrics without profiles."""


@cache
def benchmark_tasks() -> dict[str, str]:
    """Return the metric of each published task, such as ``coin/Grounding``, from the configs."""
    return {
        task["benchmark"]: task["metric"]
        for benchmark in BENCHMARKS.values()
        for task in benchmark.tasks()
        if "benchmark" in task
    }


def build_metric(spec: str | TaskMetric, profile: Profile | None = None) -> TaskMetric:
    """Return the metric with a name and its default settings, or the given metric.

    Args:
        spec: A name such as "exact_match" or "coin_grounding", which may end in a profile
            ("coin_grounding:corrected"), or an instance, in a config `class_path` and
            `init_args`.
        profile: The profile of a named metric, if the name does not end in one.

    Raises:
        ValueError: If the name or the profile is unknown; the message lists the valid ones.

    Example:
        >>> build_metric("exact_match").score(["Red"], [["red"]]).value
        100.0
        >>> build_metric("coin_imagenet").score([""], [["tench"]]).value
        100.0
        >>> build_metric("coin_imagenet:corrected").score([""], [["tench"]]).value
        0.0
    """
    if isinstance(spec, TaskMetric):
        return spec
    name, colon, ending = spec.partition(":")
    selected = ending if colon else profile
    if name not in GENERAL and name not in PROFILED:
        names = ", ".join([*sorted(GENERAL), *sorted(PROFILED)])
        raise ValueError(f"unknown metric {name!r}, expected one of {names}")
    if selected is None:
        return GENERAL[name]() if name in GENERAL else PROFILED[name]()
    if selected not in PROFILES:
        raise ValueError(
            f"metric {spec!r}: profile must be published or corrected, got {selected!r}"
        )
    if name in GENERAL:
        raise ValueError(f"metric {name!r} has one rule and no profiles; leave out {selected!r}")
    return PROFILED[name](profile=selected)


def metric_of_task(task: str) -> str:
    """Return the name of the metric of a benchmark's task.

    Args:
        task: A task such as "coin/Grounding", in any case.

    Raises:
        ValueError: If the task is unknown; the message lists the tasks.
    """
    metrics = {name.casefold(): metric for name, metric in benchmark_tasks().items()}
    if task.casefold() not in metrics:
        raise ValueError(f"unknown task {task!r}, expected one of {', '.join(benchmark_tasks())}")
    return metrics[task.casefold()]
