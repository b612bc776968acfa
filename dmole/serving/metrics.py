"""Counts what the server does, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dmole.inference.requests import Answer, Request
from dmole.serving.alarm import UnseenTaskAlarm

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The figures of ``/metrics``.

    Args:
        max_batch: Most requests of a batch.
        queue_length: Returns the number of requests that wait.
        alarm: Watches for an unseen task.
    """

    def __init__(
        self, max_batch: int, queue_length: Callable[[], int], alarm: UnseenTaskAlarm
    ) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "dmole_requests",
            "Requests by status and model.",
            ["status", "model"],
            registry=registry,
        )
        self._latency = Histogram(
            "dmole_request_seconds",
            "Seconds from a request to the end of its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            "dmole_batch_size",
            "Requests of a batch.",
            buckets=range(1, max_batch + 1),
            registry=registry,
        )
        self._batch_seconds = Histogram(
            "dmole_batch_seconds", "Seconds of a batch.", buckets=_SECONDS, registry=registry
        )
        self._tokens = Counter("dmole_tokens", "Tokens by kind.", ["kind"], registry=registry)
        self._active = Counter(
            "dmole_expert_activations",
            "Answers that an expert took part in.",
            ["expert"],
            registry=registry,
        )
        self._routed = Counter(
            "dmole_routed",
            "Requests that the router placed: accepted by an expert, or rejected.",
            ["decision"],
            registry=registry,
        )
        self._alarm = alarm
        self._measure("dmole_queue_length", "Requests that wait.", queue_length)
        self._measure(
            "dmole_rejected_share", "Share of rejected requests in the window.", lambda: alarm.share
        )
        self._measure(
            "dmole_unseen_task_alarm",
            "1 while the window is full and its rejected share is above the limit.",
            lambda: alarm.is_on,
        )

    def _measure(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(name, text, registry=self.registry).set_function(value)

    def count_request(self, status: int, model: str, seconds: float | None = None) -> None:
        """Count a request that has ended.

        Args:
            status: HTTP status; 499 if the client left.
            model: Name of the model; empty if there is none of the name or it is not known yet.
            seconds: From the request to the end of its answer; None if there is none.
        """
        self._requests.labels(str(status), model).inc()
        if seconds is not None:
            self._latency.observe(seconds)

    def count_batch(self, size: int, seconds: float) -> None:
        """Count a batch that the model has answered."""
        self._batches.observe(size)
        self._batch_seconds.observe(seconds)

    def count_answers(self, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        """Count the experts and tokens of the answers of a batch."""
        for request, answer in zip(requests, answers, strict=True):
            self._tokens.labels("prompt").inc(answer.prompt_tokens)
            self._tokens.labels("completion").inc(answer.new_tokens)
            for expert in answer.experts:
                self._active.labels(expert).inc()
            if request.experts is None:
                self._routed.labels("accepted" if answer.experts else "rejected").inc()
                self._alarm.count(not answer.experts)

    def text(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self.registry)
