"""The names by which a config or a command line asks for a metric."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from dmole.benchmarks.metrics import MultichoiceInBatches, ProfiledMetric, RuleMetric, UCITCaption
from dmole.benchmarks.retention_metrics import MME, MMMU, POPE
from dmole.benchmarks.rules import RULES
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

GENERAL: dict[str, Callable[[], TaskMetric]] = {
    "bleu_4": BLEU4,
    "cider": CIDEr,
    "contains": Contains,
    "exact_match": ExactMatch,
    "iou": IoU,
    "meteor": METEOR,
    "mme": MME,
    "mmmu": MMMU,
    "pope": POPE,
    "rouge_l": ROUGEL,
    "vqa_soft": VQASoft,
}
"""Metrics of no benchmark in particular, with one rule each."""

PROFILED: dict[str, Callable[..., ProfiledMetric]] = {
    name: partial(RuleMetric, name) for name in RULES
} | {"dmole_multichoice_batch": MultichoiceInBatches, "ucit_caption": UCITCaption}
"""Metrics of the benchmarks, with a published and a corrected profile each."""

TASKS: dict[str, str] = {
    "coin/ScienceQA": "coin_scienceqa",
    "coin/TextVQA": "coin_textvqa",
    "coin/ImageNet": "coin_imagenet",
    "coin/GQA": "coin_gqa",
    "coin/VizWiz": "coin_vizwiz",
    "coin/Grounding": "coin_grounding",
    "coin/VQAv2": "coin_vqav2",
    "coin/OCR-VQA": "coin_ocrvqa",
    "ucit/ImageNet-R": "ucit_exact",
    "ucit/ArxivQA": "ucit_exact",
    "ucit/VizWiz-Cap": "ucit_caption",
    "ucit/IconQA": "ucit_exact",
    "ucit/CLEVR-Math": "ucit_exact",
    "ucit/Flickr30k": "ucit_caption",
    "mllm_dcl/RS": "mllm_dcl_rs",
    "mllm_dcl/Med": "mllm_dcl_med",
    "mllm_dcl/AD": "mllm_dcl_ad",
    "mllm_dcl/Sci": "mllm_dcl_sci",
    "mllm_dcl/Fin": "mllm_dcl_fin",
    "cmit/VizWiz-Cap": "cider",
    "cmit/SK-VG": "dmole_grounding",
    "cmit/TextCaps": "cider",
    "cmit/IconQA": "dmole_multichoice",
    "cmit/OCR-VQA": "dmole_exact",
    "cmit/Flickr30k": "cider",
    "cmit/VizWiz": "dmole_vizwiz",
    "cmit/KVQA": "dmole_exact",
    "cmit/PMC-VQA": "dmole_multichoice",
}
"""The metric of each task of the known benchmarks, by the names of their configs."""


def build_metric(spec: str | TaskMetric, profile: Profile | None = None) -> TaskMetric:
    """Return the metric of a name with its default settings, or the metric itself.

    Args:
        spec: A name such as "exact_match" or "coin_grounding", which may end in a profile
            ("coin_grounding:corrected"), or an instance, which a config writes as `class_path`
            and `init_args`.
        profile: The profile of a named metric, if the name does not end in one.

    Raises:
        ValueError: If the name or the profile is unknown; the message lists those there are.

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
    chosen = ending if colon else profile
    if name not in GENERAL and name not in PROFILED:
        names = ", ".join([*sorted(GENERAL), *sorted(PROFILED)])
        raise ValueError(f"unknown metric {name!r}, expected one of {names}")
    if chosen is None:
        return GENERAL[name]() if name in GENERAL else PROFILED[name]()
    if chosen not in PROFILES:
        raise ValueError(f"metric {spec!r}: profile must be published or corrected, got {chosen!r}")
    if name in GENERAL:
        raise ValueError(f"metric {name!r} has one rule and no profiles; leave out {chosen!r}")
    return PROFILED[name](profile=chosen)


def metric_of_task(task: str) -> str:
    """Return the name of the metric of a benchmark's task, in any case.

    Args:
        task: Such as "coin/Grounding".

    Raises:
        ValueError: If there is no such task; the message lists them.
    """
    known = {name.casefold(): metric for name, metric in TASKS.items()}
    if task.casefold() not in known:
        raise ValueError(f"unknown task {task!r}, expected one of {', '.join(TASKS)}")
    return known[task.casefold()]
