"""What needs a second GPU or another package: two ranks against one, a base model in 4 bits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml

from experiments.gpu.common import Row, Setting, need
from experiments.gpu.precision import last
from experiments.gpu.runs import compare, tasks

TASKS = ("paint", "count")


_DECODES_SPLIT = {
    "class_path": "dmole.strategies.ShardedBaseStrategy",
    "init_args": {"gather_for_evaluation": False},
}


def two_gpus(setting: Setting) -> Iterator[Row]:
    """Yield how a run on two GPUs differs from one on one GPU."""
    need(torch.cuda.device_count() >= 2, "there is no second GPU")
    one = _fit(setting, "one_gpu", batch=8)
    two = _fit(setting, "two_gpus", "--trainer.devices", "2", "--trainer.strategy", "ddp", batch=4)
    for what, value in compare(two, one):
        yield f"two GPUs and one: {what}", value, "nccl, fp32"


def sharded(setting: Setting) -> Iterator[Row]:
    """Yield how two ranks with a base model in shards differ from two that hold all of it."""
    if setting.accelerator == "cuda":
        need(torch.cuda.device_count() >= 2, "there is no second GPU")
    strategies = {"ddp": "ddp", "sharded": "sharded_base", "sharded_decode": _DECODES_SPLIT}
    runs = {
        name: _fit(setting, name, batch=4, trainer={"devices": 2, "strategy": strategy})
        for name, strategy in strategies.items()
    }
    for name in ("sharded", "sharded_decode"):
        how = "split base" if name == "sharded" else "split base, split in evaluation too"
        for what, value in compare(runs[name], runs["ddp"]):
            yield f"{how}, and ddp: {what}", value, "2 ranks, fp32"
    for name, run in runs.items():
        timing = json.loads((run / "timing.json").read_text(encoding="utf-8"))
        yield f"{name}: peak memory of rank 0, MiB", timing["peak_memory_bytes"] // 2**20, ""


def four_bit(setting: Setting) -> Iterator[Row]:
    """Yield the score of a run on a base model in 4 bits, on as many GPUs as there are, up to 2."""
    need(setting.accelerator == "cuda", "4-bit weights need a GPU")
    need(find_spec("bitsandbytes") is not None, "package bitsandbytes is not installed")
    ranks = min(2, torch.cuda.device_count())
    run = _fit(
        setting,
        "four_bit",
        *("--model.backbone.init_args.quantization", "4bit"),
        *("--trainer.devices", str(ranks), "--trainer.strategy", "ddp"),
        batch=8 // ranks,
    )
    yield f"4-bit base on {ranks} ranks: Last, percent", last(run), ""


def _fit(
    setting: Setting, name: str, *flags: str, batch: int, trainer: Mapping[str, Any] | None = None
) -> Path:
    """Run the command line in processes of its own and return the run folder.

    Raises:
        RuntimeError: If it fails; the message is the end of what it prints.
    """
    settings = {
        "trainer": {
            "name": name,
            "default_root_dir": str(setting.folder),
            "accelerator": setting.accelerator,
            "enable_progress_bar": False,
            **(trainer or {}),
        },
        "data": {"tasks": tasks(TASKS, 64, 16), "batch_size": batch, "eval_batch_size": 8},
    }
    config = setting.folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    words = [sys.executable, "-m", "dmole", "fit", "--config", "quickstart.yaml"]
    done = subprocess.run(
        [*words, "--config", str(config), *flags], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"dmole fit returned {done.returncode}: {done.stderr[-500:]}")
    return setting.folder / name / "version_0"
