"""Throughput and latency of a served run, on one machine that also runs the clients.

Starts ``dmole serve`` on the run, with one thread for the model, and asks it with the test samples
of its tasks, mixed, over kept-alive connections:

- *together*: 64 requests at once, routed; *one at a time*: the same 64 by one client; *base*: 64 at
  once for the base model alone. The three follow each other in each of several rounds, so that a
  load of the machine by others meets all of them; ratios are taken within a round, and their
  median is reported;
- *load*: 16 clients that each send the next request when the last is answered, for some minutes.

Each routed answer is compared with that of ``dmole.load`` in this process. Run ``python -m
experiments.serve_load RUN [--seconds 300] [--rounds 5] [--output docs/results/serve.csv]``.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmole.inference import load, make_request
from dmole.run.loading import build_data
from dmole.run.model_file import read_run_settings
from dmole.storage.files import write_csv

TOGETHER, CLIENTS = 64, 16


@dataclass(frozen=True)
class Prompt:
    """A request without its model, and the text that answers it offline."""

    parts: list[dict[str, Any]]
    tokens: int
    expected: str

    def body(self, model: str) -> bytes:
        """Return the body of a chat completion."""
        messages = [{"role": "user", "content": self.parts}]
        content = {"model": model, "messages": messages, "max_tokens": self.tokens}
        return json.dumps(content).encode()


@dataclass(frozen=True)
class Reply:
    """What a client saw: status, text, tokens of the answer, seconds."""

    status: int
    text: str
    tokens: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=float, default=300.0, help="length of the load")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16, help="--max_batch of the server")
    parser.add_argument("--output", type=Path, default="docs/results/serve.csv")
    options = parser.parse_args()
    prompts = prompts_of(options.run)
    rows = [machine()]
    with serving(options.run, options.batch) as port:
        ask_all(port, prompts, "auto", 4)  # warm
        rows += rounds(port, prompts, options.rounds)
        rows += [*under_load(port, prompts, options.seconds), machine()]
    write_csv(options.output, ["measure", "value", "unit", "note"], rows)
    for row in rows:
        print(f"{row['measure']:40} {row['value']:>10} {row['unit']:12} {row.get('note', '')}")


def prompts_of(run: Path) -> list[Prompt]:
    """Return the test samples of all tasks in turn, with their offline answers."""
    data, model = build_data(read_run_settings(run)), load(run)
    groups = []
    for task in data.tasks:
        group = []
        for sample in data.test_samples(task.name)[:TOGETHER]:
            file = io.BytesIO()
            sample.images[0].load().save(file, "PNG")
            tokens = task.max_new_tokens
            request = make_request(sample.prompt, file.getvalue(), max_new_tokens=tokens)
            uri = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
            parts: list[dict[str, Any]] = [
                {"type": "image_url", "image_url": {"url": uri}},
                {"type": "text", "text": sample.prompt},
            ]
            group.append(Prompt(parts, tokens, model.answer([request])[0].text))
        groups.append(group)
    return [prompt for group in zip(*groups, strict=False) for prompt in group]


@contextmanager
def serving(run: Path, batch: int) -> Iterator[int]:
    flags = f"--port 0 --max_queue 1000 --max_batch {batch}".split()
    words = [sys.executable, "-m", "dmole", "serve", str(run), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        yield int(server.stdout.readline().rpartition(":")[2])
    finally:
        server.terminate()
        server.wait(120)


def send(connection: http.client.HTTPConnection, prompt: Prompt, model: str) -> Reply:
    start = time.perf_counter()
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", prompt.body(model), headers)
    response = connection.getresponse()
    content, seconds = json.loads(response.read()), time.perf_counter() - start
    if response.status != 200:
        return Reply(response.status, str(content), 0, seconds)
    text = content["choices"][0]["message"]["content"]
    return Reply(200, text, content["usage"]["completion_tokens"], seconds)


def ask_all(
    port: int, prompts: Sequence[Prompt], model: str, clients: int
) -> tuple[float, list[Reply]]:
    """Ask all prompts of one model; return the seconds, and the replies in order.

    Each of the clients is a thread with one connection; they share the prompts.
    """
    replies: dict[int, Reply] = {}
    barrier = threading.Barrier(clients + 1)

    def client(first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        connection.connect()
        barrier.wait()
        for row in range(first, len(prompts), clients):
            replies[row] = send(connection, prompts[row], model)
        connection.close()

    threads = [threading.Thread(target=client, args=(first,)) for first in range(clients)]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start, [replies[row] for row in range(len(prompts))]


WAYS = {"together": ("auto", TOGETHER), "one at a time": ("auto", 1), "base": ("base", TOGETHER)}
"""Model and number of clients of each way to ask."""


def rounds(port: int, prompts: Sequence[Prompt], count: int) -> list[dict[str, Any]]:
    asked = [prompts[number % len(prompts)] for number in range(TOGETHER)]
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    replies: dict[str, list[Reply]] = {way: [] for way in WAYS}
    for _ in range(count):
        for way, (model, clients) in WAYS.items():
            seconds, given = ask_all(port, asked, model, clients)
            rates[way].append(len(asked) / seconds)
            replies[way] += given
    rows = []
    for way, values in rates.items():
        tokens = statistics.mean(reply.tokens for reply in replies[way])
        note = f"{tokens:.1f} tokens an answer"
        rows.append(entry(way, statistics.median(values), "requests/s", note))
    for other in ("one at a time", "base"):
        ratios = [mine / its for mine, its in zip(rates["together"], rates[other], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f} in {count} rounds"
        rows.append(entry(f"together / {other}", statistics.median(ratios), "ratio", spread))
    latency = statistics.median(reply.seconds for reply in replies["one at a time"]) * 1000
    routed = replies["together"] + replies["one at a time"]
    return [
        *rows,
        entry("latency of one at a time", latency, "ms", "median"),
        *checks("rounds", asked * (2 * count), routed),
        entry("base: lost", lost(replies["base"]), "requests", f"of {count * TOGETHER}"),
    ]


def lost(replies: Sequence[Reply]) -> int:
    return sum(reply.status != 200 for reply in replies)


def checks(name: str, prompts: Sequence[Prompt], replies: Sequence[Reply]) -> list[dict[str, Any]]:
    """Return how many routed requests were lost or answered in another way than offline."""
    pairs = zip(prompts, replies, strict=True)
    different = sum(prompt.expected != reply.text for prompt, reply in pairs)
    note = f"of {len(replies)}"
    return [
        entry(f"{name}: lost", lost(replies), "requests", note),
        entry(f"{name}: answers unlike offline", different, "requests", note),
    ]


def under_load(port: int, prompts: Sequence[Prompt], seconds: float) -> list[dict[str, Any]]:
    replies: list[tuple[Prompt, Reply]] = []
    end = time.perf_counter() + seconds

    def client(first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        number = first
        while time.perf_counter() < end:
            prompt = prompts[number % len(prompts)]
            replies.append((prompt, send(connection, prompt, "auto")))
            number += CLIENTS
        connection.close()

    threads = [threading.Thread(target=client, args=(first,)) for first in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = sorted(reply.seconds * 1000 for _, reply in replies)
    note = f"{CLIENTS} clients for {seconds:g} s"
    return [
        entry("load: throughput", len(replies) / seconds, "requests/s", note),
        *(
            entry(f"load: p{percent}", times[len(times) * percent // 100], "ms", note)
            for percent in (50, 95, 99)
        ),
        *checks("load", [prompt for prompt, _ in replies], [reply for _, reply in replies]),
    ]


def machine() -> dict[str, Any]:
    cores = f"{os.cpu_count()} cores"  # the load includes the server and its clients
    return entry("load average of one minute", os.getloadavg()[0], "processes", cores)


def entry(measure: str, value: float, unit: str, note: str = "") -> dict[str, Any]:
    shown = f"{value:.0f}" if isinstance(value, int) or value >= 1000 else f"{value:.3g}"
    return {"measure": measure, "value": shown, "unit": unit, "note": note}


if __name__ == "__main__":
    main()
