"""Reads the settings that decide about memory and time from a config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dmole.benchmarks.sizes import published_sizes
from dmole.callbacks.router_fitting import EMBEDDING_SAMPLES
from dmole.data.formats import Split
from dmole.data.ranges import RANGES, check_numbers
from dmole.models.discovery import Patterns
from dmole.planning.setup import Setup, TaskSize
from dmole.routing import Router
from dmole.run.parts import import_class
from dmole.streams.stream import SequentialStream, Stream

ASSUMED: Mapping[Split, int] = {"train": 70_000, "test": 5_000}
"""Samples of a task without a published size."""

COIN_TEST = 61_000
"""The same for a test split of CoIN, whose eight splits have about 270,000 samples."""

_MOMENTS = {
    **dict.fromkeys(("Adam", "AdamW", "NAdam", "RAdam", "Adamax"), 2),
    **dict.fromkeys(("RMSprop", "Adagrad"), 1),
}
_BACKBONE = "dmole.models.PretrainedBackbone"
_SIZE = re.compile(r"(?:[?&]size=|#)(\d+)")


def read_setup(
    config: Mapping[str, Any],
    *,
    devices: int | None = None,
    sizes: Mapping[Split, int | None] | None = None,
) -> Setup:
    """Return what a plan reads of a resolved config.

    Args:
        config: The config, with all defaults.
        devices: GPUs of a node in place of ``trainer.devices``.
        sizes: Samples of the splits of a task without a known size; by default ``ASSUMED``.

    Raises:
        ValueError: If a setting cannot be reckoned with; names it.
    """
    trainer, model, data = config["trainer"], config["model"], config["data"]
    _check_numbers(model, data)
    backbone = model["backbone"]
    if backbone["class_path"] != _BACKBONE:
        raise ValueError(f"a base model of class {backbone['class_path']} cannot be reckoned")
    base = backbone["init_args"]
    stream: Stream = build(trainer["stream"])
    router: Router = build(model["router"])
    tasks = tuple(_task_size(task, sizes or {}, data["eval_limit"]) for task in data["tasks"])
    learned = [task["name"] for task in data["tasks"] if not task.get("eval_only")]
    return Setup(
        name_or_path=base["name_or_path"],
        patterns=Patterns(**base["patterns"]) if base["patterns"] else None,
        dtype=base["dtype"],
        quantization=base["quantization"],
        image_settings=base["image_settings"] or {},
        precision=_precision(trainer["precision"]),
        devices=devices or _devices(trainer["devices"]),
        num_nodes=int(trainer["num_nodes"]),
        sharded=_sharded(trainer["strategy"]),
        gathers=_arguments(trainer["strategy"]).get("gather_for_evaluation", True),
        evaluate=trainer["evaluate"],
        accumulate_grad_batches=int(trainer["accumulate_grad_batches"]),
        activation_checkpointing=model["activation_checkpointing"],
        dropout=model["dropout"],
        alpha=model["alpha"],
        beams=model["beams"],
        past_experts_on_device=model["past_experts_on_device"],
        projector_experts=model["projector_experts"],
        allocator=build(model["allocator"]),
        router=router,
        regularizers=tuple(
            (term["class_path"].rpartition(".")[2], _arguments(term))
            for term in model["regularizers"] or ()
        ),
        rules=_rules(trainer["callbacks"]),
        moments=_moments(model["optimizer"]),
        batch_size=_batch_size(data),
        tasks_set_batches=any(task.get("batch_size") for task in data["tasks"]),
        max_tokens_per_batch=data["max_tokens_per_batch"],
        eval_batch_size=data["eval_batch_size"],
        eval_tokens_per_batch=data["eval_tokens_per_batch"],
        num_workers=data["num_workers"],
        max_length=data["max_length"],
        embedding_samples=_embedding_samples(trainer["callbacks"]),
        stages=tuple(
            replace(stage, common=router.common)
            # a stream that finds its stages itself is reckoned as one stage a task
            for stage in (stream if stream.planned else SequentialStream()).stages(learned)
        ),
        tasks=tasks,
    )


def build(node: Any) -> Any:
    """Return the object that a part of a config describes, with its own parts."""
    if isinstance(node, Mapping) and "class_path" in node:
        kind = import_class(node["class_path"])
        return kind(**{key: build(value) for key, value in (node.get("init_args") or {}).items()})
    return node


def _check_numbers(model: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Refuse the numbers that `fit` refuses; the workers depend on the machine of the run."""
    check_numbers(**{key: data[key] for key in RANGES if key != "num_workers"})
    kept = model["past_experts_on_device"]
    if kept is not None and kept < 0:
        raise ValueError(f"model.past_experts_on_device must not be negative, got {kept}")


def _precision(value: Any) -> str:
    return {None: "32-true", "32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}.get(
        None if value is None else str(value), str(value)
    )


def _devices(value: Any) -> int:
    """Return the number of GPUs of ``trainer.devices``; ``auto`` is one."""
    if isinstance(value, (list, tuple)):
        return len(value)
    text = str(value)
    if text in ("auto", "-1"):
        return 1
    return int(text) if text.isdigit() else len(text.split(","))


def _sharded(strategy: Any) -> bool:
    """Return whether a strategy splits the base model.

    Raises:
        ValueError: If it is neither that nor one with a whole base model on each GPU.
    """
    name = strategy["class_path"] if isinstance(strategy, Mapping) else str(strategy)
    if name.rpartition(".")[2] in ("ShardedBaseStrategy", "sharded_base"):
        return True
    if name.startswith(("auto", "ddp")) or name.endswith(("DDPStrategy", "SingleDeviceStrategy")):
        return False
    raise ValueError(f"trainer.strategy {name} cannot be reckoned: use auto, ddp or sharded_base")


def _arguments(part: Any) -> Mapping[str, Any]:
    """Return the arguments of a part of a config; empty if it has none."""
    return (part.get("init_args") or {}) if isinstance(part, Mapping) else {}


def _moments(optimizer: Mapping[str, Any]) -> int:
    name = optimizer["class_path"].rpartition(".")[2]
    if name == "SGD":
        return int(bool(_arguments(optimizer).get("momentum")))
    if name not in _MOMENTS:
        raise ValueError(f"the state of model.optimizer {name} cannot be reckoned")
    return _MOMENTS[name]


def _batch_size(data: Mapping[str, Any]) -> int:
    """Return the largest batch of a task."""
    return max(int(task.get("batch_size") or data["batch_size"]) for task in data["tasks"])


def _embedding_samples(callbacks: Any) -> int:
    for callback in callbacks or ():
        if callback["class_path"].endswith("RouterFitting"):
            return int(_arguments(callback).get("embedding_samples", EMBEDDING_SAMPLES))
    return EMBEDDING_SAMPLES


def _rules(callbacks: Any) -> tuple[object, ...]:
    return tuple(
        build(rule)
        for callback in callbacks or ()
        if callback["class_path"].endswith(".GradientRules")
        for rule in _arguments(callback)["rules"]
    )


def _task_size(
    task: Mapping[str, Any], sizes: Mapping[Split, int | None], eval_limit: int | None
) -> TaskSize:
    assumed = []
    counts: dict[Split, int] = {}
    published = published_sizes(task["name"], task.get("benchmark"))
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        known = next((found[split] for found in published.values() if split in found), None)
        written = _SIZE.search(str(task.get(split) or ""))
        if not task.get(split) or (split == "train" and task.get("eval_only")):
            counts[split] = 0
        elif written is not None or known is not None:
            counts[split] = int(written[1]) if written else int(known or 0)
        else:
            counts[split] = sizes.get(split) or _assumed(task, split)
            assumed.append(split)
        if task.get("limit"):
            counts[split] = min(counts[split], int(task["limit"]))
    return TaskSize(
        name=task["name"],
        train=counts["train"],
        passes=int(task.get("epochs") or 1) * int(task.get("repeat") or 1),
        test=counts["test"] if eval_limit is None else min(counts["test"], eval_limit),
        new_tokens=int(task.get("max_new_tokens") or 32),
        assumed=tuple(assumed),
    )


def _assumed(task: Mapping[str, Any], split: Split) -> int:
    of_coin = split == "test" and str(task.get("benchmark")).startswith("coin/")
    return COIN_TEST if of_coin else ASSUMED[split]
