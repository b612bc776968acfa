"""A run loaded on the GPU: answers as on the CPU, and what batches gain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

import dmole
from dmole.inference import Request, RoutedModel
from dmole.serving.engine import Engine
from dmole.serving.jobs import Job
from dmole.serving.limits import Limits
from experiments.gpu.common import Row, Setting
from experiments.gpu.precision import TASKS, requests_of, texts
from experiments.gpu.runs import RunBuilder, tasks


def serve(setting: Setting, train: int = 64, count: int = 64) -> Iterator[Row]:
    """Yield whether answers are those of the CPU, and the throughput of the server's engine."""
    data = {"tasks": tasks(TASKS, train, 8), "eval_batch_size": 8}
    run = RunBuilder(setting).build("served", data).fit()
    host, model = dmole.load(run), dmole.load(run).to(setting.accelerator)
    requests = requests_of(count)
    theirs, ours = (texts(each, requests, 16) for each in (host, model))
    same = sum(a == b for a, b in zip(ours, theirs, strict=True)) / count
    yield f"share of equal answers, {setting.accelerator} and cpu", round(same, 4), "fp32"
    rates = {"one at a time": 0.0, "together": 0.0}
    for _ in range(2):  # the first round warms up
        for way in rates:
            spent = asyncio.run(_ask(model, requests, together=way == "together"))
            rates[way] = count / spent
    for way, rate in rates.items():
        yield f"{way}, requests/s", round(rate, 1), f"{count} requests of two tasks, tiny model"
    yield (
        "together / one at a time",
        round(rates["together"] / rates["one at a time"], 2),
        ("batches of up to 16"),
    )


async def _ask(model: RoutedModel, requests: Sequence[Request], *, together: bool) -> float:
    """Return the seconds in which the engine answers all requests."""
    engine = Engine(model, Limits(max_batch=16, max_queue=len(requests)))
    engine.start()
    start = time.perf_counter()
    if together:
        jobs = [Job(request) for request in requests]
        for job in jobs:
            engine.submit(job)
        await asyncio.gather(*(job.end() for job in jobs))
    else:
        for request in requests:
            job = Job(request)
            engine.submit(job)
            await job.end()
    spent = time.perf_counter() - start
    engine.close()
    return spent
