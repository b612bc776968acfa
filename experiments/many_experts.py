"""Memory and latency of a request with 1, 20 and 200 small experts on the embedded model.

    python -m experiments.many_experts --output docs/results/many_experts.csv

Each expert has rank 2 in every linear of the language model. Its router entry is fitted to the
embeddings of real samples, moved in a direction of its own. Requests are forced to experts in turn
(``forced``) or routed and answered by the router's choice (``routed``). The last rows keep 20 of
200 experts in memory and read the others from disk when a request needs them: with requests for 10
experts (all hits after the first round), and for all 200 (nearly every request is a miss).
Times are CPU times of one thread, medians over interleaved rounds, one request at a time, at most
4 tokens an answer.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dmole.data import Sample, Task, open_source
from dmole.experts import save_expert
from dmole.inference import Request, RoutedModel
from dmole.models import PretrainedBackbone
from dmole.routing import AutoencoderRouter
from dmole.storage.files import write_csv

SIZES = (1, 20, 200)
RANK, ROUNDS, REQUESTS = 2, 5, 20


def main() -> None:
    """Measure and print one row for each setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measure(Path(folder)))
    for row in rows:
        print(",".join(str(value) for value in row.values()))
    if options.output is not None:
        write_csv(options.output, list(rows[0]), rows)


def measure(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table."""
    task = Task(
        "count", train="synthetic://count/train?size=32", test="synthetic://count/test?size=20"
    )
    samples = list(open_source(task, "test", Path()))
    models = {size: build(size, folder / str(size)) for size in SIZES}
    limited = {name: build(200, folder / "200") for name in ("10 in use", "200 in use")}
    settings: list[tuple[str, RoutedModel, int, bool]] = [("bare", models[1], 0, False)]
    settings += [(f"{size} forced", models[size], size, False) for size in SIZES]
    settings += [(f"{size} routed", models[size], size, True) for size in SIZES]
    for name, model in limited.items():
        model.limit_memory(max_loaded=20, takeover=1.0)
        settings.append((f"200, 20 loaded, {name}", model, int(name.split()[0]), False))
    times: dict[str, list[float]] = {name: [] for name, *_ in settings}
    for turn in range(ROUNDS):
        for name, model, size, routed in settings:
            times[name] += seconds(model, samples, size, routed, start=turn * REQUESTS)
    bare = statistics.median(times["bare"])
    for name, model, *_ in settings:
        median = statistics.median(times[name][REQUESTS:])  # the first round fills the memory
        yield {
            "setting": name,
            "experts_mb": round(held(model) / 1e6, 2),
            "milliseconds": round(1000 * median, 1),
            "ratio_to_bare": round(median / bare, 2),
            "loads": 0 if model.residency is None else model.residency.loads,
        }


def build(size: int, folder: Path) -> RoutedModel:
    """Return the embedded model with some experts, whose files are below a folder."""
    model = RoutedModel(PretrainedBackbone("tiny"), AutoencoderRouter(components=16))
    linears = [
        path
        for block in model.backbone.blocks
        if block.modality == "language"
        for path in block.linears
    ]
    task = Task(
        "count", train="synthetic://count/train?size=32", test="synthetic://count/test?size=32"
    )
    requests = [Request(s.turns, s.images) for s in open_source(task, "test", Path())]
    embeddings = model.embed(requests)
    generator = torch.Generator().manual_seed(0)
    for index in range(size):
        name = f"expert_{index}"
        model.library.add(name, dict.fromkeys(linears, RANK), dict.fromkeys(linears, 4.0))
        shift = torch.randn(embeddings.shape[1], generator=generator)
        model.router.fit(name, embeddings + shift * embeddings.std())
        if not (folder / name).is_dir():
            save_expert(model.library, name, folder / name, "tiny")
        model.sources[name] = folder / name
    return model


def seconds(
    model: RoutedModel, samples: list[Sample], experts: int, routed: bool, start: int
) -> Iterator[float]:
    """Yield the seconds of some requests, answered one by one."""
    for index, sample in enumerate(itertools.islice(itertools.cycle(samples), REQUESTS), start):
        chosen = (model.experts[index % experts],) if experts else ()
        request = Request(sample.turns, sample.images, 4, None if routed else chosen)
        begin = time.process_time()
        model.answer([request])
        yield time.process_time() - begin


def held(model: RoutedModel) -> int:
    """Return the bytes of the expert tensors in memory."""
    return sum(
        parameter.untyped_storage().nbytes()
        for name in model.experts
        for _, parameter in model.library.parameters(name)
    )


if __name__ == "__main__":
    main()
