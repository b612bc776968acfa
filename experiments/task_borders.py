"""How soon and how surely an `AutoStream` notices a new task, on the demonstration tasks.

    python -m experiments.task_borders --output docs/results/borders.csv

Nothing is trained: segments depend on the embeddings of the base model and on autoencoders alone.
The samples of the quickstart and of the alike tasks arrive task by task, for each of three seeds
of the samples; the detection is repeated with other windows and limits.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from dmole.allocation import UniformAllocator
from dmole.data import Task
from dmole.datamodule import ContinualDataModule
from dmole.models import PretrainedBackbone
from dmole.module import ContinualModule
from dmole.routing import AutoencoderRouter
from dmole.storage.files import write_csv
from dmole.streams import AutoStream
from dmole.streams.segments import Segmentation

CONFIGS = {"quickstart": "quickstart.yaml", "alike": "benchmarks/alike.yaml"}
RULES = ((32, 0.5, 100), (16, 0.5, 100), (64, 0.5, 100), (32, 0.25, 100), (32, 0.5, 50))
"""Window, limit and least samples of a segment; the defaults first."""
CHUNK = 1024
HEADER = ("stream", "seed", "window", "limit", "min_segment", "boundaries", "detected",
          "delay_mean", "delay_max", "start_error_max", "false_alarms", "separated",
          "details")  # fmt: skip


def load_tasks(config: Path, seed: int) -> list[Task]:
    """Return the tasks of a config, with the training samples of a seed."""
    tasks: list[dict[str, Any]] = yaml.safe_load(config.read_text(encoding="utf-8"))["data"][
        "tasks"
    ]
    return [Task(**{**task, "train": f"{task['train']}&seed={seed}"}) for task in tasks]


def embed(module: ContinualModule, tasks: Sequence[Task]) -> dict[str, Tensor]:
    """Return the embeddings of the training samples of each task, ``(N, D)``."""
    data, base = ContinualDataModule(list(tasks), eval_batch_size=100), module.backbone
    data.attach_processor(base.processor, base.context_length, base.prompts)
    found = {}
    with torch.no_grad():
        for name in data.task_names:
            loader = data.embedding_loader([(s, name) for s in data.train_samples(name)])
            found[name] = torch.cat([module.embed(batch, remember=False) for batch in loader])
    return found


def find(rows: Tensor, rule: tuple[int, float, int]) -> Segmentation:
    """Return the segments of a stream of embeddings ``(N, D)`` under a rule of `RULES`."""
    segmenter = AutoStream(*rule).segmenter(AutoencoderRouter(), fit_samples=2000, seed=0)
    for chunk in rows.split(CHUNK):
        segmenter.add(chunk)
    return segmenter.finish()


def measure(found: Segmentation, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return detections and false alarms of a segmentation.

    The first alarm between the first sample of a task and that of the next one detects the task;
    every other alarm is false. A delay counts the samples of the task that have arrived then, that
    of the alarm included. ``separated`` is the share of all samples, in percent, that belong to the
    expert with most samples of their task, unless that expert has more samples of another task.

    Args:
        found: The segments.
        sizes: Number of samples of each task, in order.
    """
    bounds = [0, *accumulate(sizes.values())]
    delays, errors, false, details = [], [], 0, []
    for number, (name, (begin, end)) in enumerate(zip(sizes, pairwise(bounds), strict=True)):
        inside = [i for i, alarm in enumerate(found.alarms) if begin <= alarm < end]
        if number and inside:
            delays.append(found.alarms[inside[0]] - begin + 1)
            errors.append(abs(found.starts[inside[0] + 1] - begin))
            details.append(f"{name} after {delays[-1]}")
        elif number:
            details.append(f"{name} missed")
        extra = len(inside) - (1 if number and inside else 0)
        false += extra
        details += [f"{extra} false in {name}"] if extra else []
    task = np.repeat(np.arange(len(sizes)), list(sizes.values()))
    shared = np.zeros((len(found.starts), len(sizes)), np.int64)  # (S, T)
    np.add.at(shared, (found.owner, task), 1)
    chosen, largest = shared.argmax(axis=0).tolist(), shared.argmax(axis=1).tolist()
    separated = sum(int(shared[s, t]) for t, s in enumerate(chosen) if largest[s] == t)
    return {
        "boundaries": len(sizes) - 1,
        "detected": len(delays),
        "delay_mean": round(float(np.mean(delays)), 1) if delays else "",
        "delay_max": max(delays, default=""),
        "start_error_max": max(errors, default=""),
        "false_alarms": false,
        "separated": round(100.0 * separated / len(task), 1),
        "details": "; ".join(details),
    }


def main() -> None:
    """Write one row for each stream, seed and rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", type=Path, default=Path("configs"), help="folder of configs")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the samples, from 0")
    parser.add_argument("--output", type=Path, required=True, help="CSV file to write")
    options = parser.parse_args()
    module = ContinualModule(PretrainedBackbone("tiny"), UniformAllocator(), AutoencoderRouter())
    module.eval()
    rows = []
    for stream, config in CONFIGS.items():
        for seed in range(options.seeds):
            embedded = embed(module, load_tasks(options.configs / config, seed))
            sizes = {name: len(part) for name, part in embedded.items()}
            for rule in RULES:
                found = find(torch.cat(list(embedded.values())), rule)
                names = dict(zip(("window", "limit", "min_segment"), rule, strict=True))
                rows.append({"stream": stream, "seed": seed, **names, **measure(found, sizes)})
                print(rows[-1])
    write_csv(options.output, HEADER, rows)


if __name__ == "__main__":
    main()
