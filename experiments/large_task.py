"""Time and memory of a task file with a million items.

Writes synthetic conversations with four image files, then measures in fresh processes:

- streaming: time to iterate over all items, and growth of the anonymous memory of the process
  (polled; pages of mapped files do not count, because they can be dropped at any time);
- opening: the same for the creation of the Arrow file (all checks included), then for opening it
  again;
- workers: resident memory of a process and its loader workers. Each worker reads every fourth
  sample and so touches every page. Proportional set size (PSS) divides a page by the number of
  processes that hold it, so its sum counts shared pages once. The difference from the same number
  of workers with ten samples is the memory of the data.

Run ``python -m experiments.large_task [--items 1000000] [--workers 8]``. It needs Linux, some
minutes and about 2 GB of disk space in the temporary folder.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from dmole.data.sequences import Samples, TaskItems
from dmole.data.source import open_source
from dmole.data.streaming import stream_items
from dmole.data.task import Task

IMAGES, WORDS = 4, "a red bus stands before the gray house and two people wait for it to leave"
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=8)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*worker processes in total")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["DMOLE_CACHE"] = str(folder / "cache")
        for index in range(IMAGES):
            Image.new("RGB", (8, 8), (60 * index, 0, 0)).save(folder / f"{index}.png")
        for count in (options.items // 10, options.items):
            source = write(folder / f"{count}.json", count)
            print(f"\n{count} items, {source.stat().st_size / MIB:.0f} MiB of JSON")
            for label, job in (("stream", stream), ("make", open_seconds), ("open", open_seconds)):
                seconds, peak = run_isolated(job, source)
                print(f"{label:>8}: {seconds:7.2f} s, memory grew by {peak / MIB:4.0f} MiB")
        small = write(folder / "small.json", 10)
        size = sum(file.stat().st_size for file in (folder / "cache").glob("*.arrow")) / MIB
        print(f"\nworkers with {options.items} items ({size:.0f} MiB of Arrow files in total)")
        data = {}
        for workers in (1, options.workers):
            empty = run_isolated(hold, small, workers)[0]
            full = run_isolated(hold, source, workers)[0]
            data[workers] = full["pss"] - empty["pss"]
            for key in ("pss", "rss"):
                texts = [f"{held[key] / MIB:.0f}" for held in (empty, full)]
                print(f"{workers:>3} workers, sum of {key}: {texts[0]} MiB empty, {texts[1]} MiB")
        ratio = data[options.workers] / data[1]
        sizes = " and ".join(f"{value / MIB:.0f} MiB ({key})" for key, value in data.items())
        print(f"resident memory of the data: {sizes}; ratio {ratio:.2f}")


class Passes(Dataset[int]):
    """A dataset whose every entry iterates over the samples."""

    def __init__(self, items: TaskItems, count: int) -> None:
        self.items = items
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return sum(len(self.items[position][0].turns) for position in range(0, len(self.items), 4))


def write(path: Path, count: int) -> Path:
    """Write a data file with `count` conversations, one at a time."""
    words = WORDS.split()
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            turn = " ".join(words[(index * step) % len(words)] for step in range(1, 25))
            talk = [{"from": "human", "value": f"<image>\n{turn}?"}, {"from": "gpt", "value": turn}]
            item = {"id": f"{index:09d}", "image": f"{index % IMAGES}.png", "conversations": talk}
            file.write(("[" if index == 0 else ",\n") + json.dumps(item))
        file.write("]\n")
    return path


def run_isolated(job: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    """Run a job in a separate process; return its result and the growth of its memory."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=lambda: send.send(job(*arguments)))
    process.start()
    send.close()
    grown = [memory(process.pid, "anonymous")]
    while not receive.poll(0.1):
        grown.append(memory(process.pid, "anonymous"))
    result = receive.recv()
    process.join()
    return result, max(grown) - grown[0]


def stream(source: Path) -> float:
    """Return the seconds of an iteration over all items."""
    start = time.perf_counter()
    for _ in stream_items(source):
        pass
    return time.perf_counter() - start


def open_seconds(source: Path) -> float:
    """Return the seconds to open the samples."""
    start = time.perf_counter()
    train_samples(source)
    return time.perf_counter() - start


def train_samples(source: Path) -> Samples:
    """Return the training samples of a file."""
    return open_source(Task("task", train=source.name), "train", source.parent)


def hold(source: Path, workers: int) -> dict[str, int]:
    """Return the resident memory of this process and its workers after reading all samples."""
    items = TaskItems([("task", train_samples(source))])
    loader = DataLoader(
        Passes(items, workers),
        batch_size=1,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    for _ in loader:  # one batch, and so one pass, for each worker
        pass
    pids = [os.getpid(), *(process.pid for process in multiprocessing.active_children())]
    return {key: sum(memory(pid, key) for pid in pids) for key in ("pss", "rss")}


def memory(pid: int | None, key: str) -> int:
    """Return the bytes that a process holds, from the kernel's summary of its mappings."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    (line,) = (line for line in lines if line.lower().startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
