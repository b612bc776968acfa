"""The one thread that owns the model: it answers concurrent requests in common batches."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

from dmole.inference.requests import Answer, Request
from dmole.messages import one_line
from dmole.serving.errors import ApiError
from dmole.serving.jobs import Job
from dmole.serving.limits import Limits

log = logging.getLogger("dmole")

T = TypeVar("T")
_RECENT = 20  # batches whose mean time predicts when the queue has room


class AnsweringModel(Protocol):
    """What the engine needs of :class:`~dmole.inference.RoutedModel`."""

    def answer(
        self, requests: Sequence[Request], on_text: Callable[[int, str], bool] | None = None
    ) -> list[Answer]:
        """Answer requests in one batch."""
        ...


class BatchObserver(Protocol):
    """Counts batches."""

    def count_batch(self, size: int, seconds: float) -> None:
        """Count a batch that the model has answered."""
        ...

    def count_answers(self, requests: Sequence[Request], answers: Sequence[Answer]) -> None:
        """Count the answers of a batch."""
        ...


class Engine:
    """Queues requests and answers them in batches, oldest first.

    A batch holds the requests that wait when it starts; the first of an idle server waits up to
    ``max_wait_ms`` for others. Requests of a batch may use different experts and lengths. A
    request that arrives while a batch runs waits for its end.

    Args:
        model: Answers; only the engine's thread calls it.
        limits: Gives sizes of batch and queue.
        observer: Counts batches; None counts nothing.
        one_length: Whether the requests of a batch need the same ``max_new_tokens``, as a beam
            search does.
    """

    def __init__(
        self,
        model: AnsweringModel,
        limits: Limits,
        observer: BatchObserver | None = None,
        *,
        one_length: bool = False,
    ) -> None:
        self._model = model
        self._one_length = one_length
        self._limits = limits
        self.observer = observer
        self._queue: deque[Job] = deque()
        self._tasks: deque[Callable[[], None]] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._thread = threading.Thread(target=self._work, name="dmole-model", daemon=True)

    @property
    def queue_length(self) -> int:
        """Number of requests that wait."""
        return sum(not job.cancelled for job in list(self._queue))

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more requests."""
        return self._closed

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def check_room(self) -> None:
        """Refuse a request that the queue has no room for.

        Raises:
            ApiError: If the queue is full (429, with the seconds to wait), or the engine has
                closed (503).
        """
        if self._closed:
            raise ApiError(503, "the server is shutting down")
        if self.queue_length >= self._limits.max_queue:
            raise ApiError(
                429,
                f"{self._limits.max_queue} requests wait already, ask again later",
                code="queue_full",
                headers={"Retry-After": str(self._seconds_to_wait())},
            )

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            ApiError: As `check_room`.
        """
        with self._change:
            self.check_room()
            self._queue.append(job)
            self._change.notify()

    def between_batches(self, task: Callable[[], T]) -> Future[T]:
        """Run a task in the model's thread, after the batch that runs and before the next one.

        Returns:
            The future result of the task.
        """
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(task())
            except Exception as error:
                future.set_exception(error)

        with self._change:
            if self._closed:
                raise ApiError(503, "the server is shutting down")
            self._tasks.append(run)
            self._change.notify()
        return future

    def close(self, timeout: float | None = None) -> None:
        """Answer what waits, then end the thread.

        Args:
            timeout: Most seconds to wait for that.
        """
        with self._change:
            self._closed = True
            self._change.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _seconds_to_wait(self) -> int:
        mean = sum(self._recent) / len(self._recent) if self._recent else 1.0
        return max(1, math.ceil(mean * self._limits.max_queue / self._limits.max_batch))

    # -- the model's thread ----------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._queue or self._tasks or self._closed)
                if self._closed and not self._queue and not self._tasks:
                    return
                tasks, self._tasks = list(self._tasks), deque()
            for task in tasks:
                task()
            jobs = self._next_batch()
            if jobs:
                self._answer(jobs)

    def _next_batch(self) -> list[Job]:
        """Take the next jobs off the queue, after a short wait for more than one."""
        size, end = self._limits.max_batch, time.monotonic() + self._limits.max_wait_ms / 1000
        with self._change:
            if self._queue:
                self._change.wait_for(
                    lambda: len(self._queue) >= size or self._closed, end - time.monotonic()
                )
            jobs: list[Job] = []
            left: deque[Job] = deque()
            for job in self._queue:
                if job.cancelled:
                    continue
                fits = len(jobs) < size and (not jobs or self._share_batch(jobs[0], job))
                (jobs if fits else left).append(job)
            self._queue = left
        return jobs

    def _share_batch(self, one: Job, other: Job) -> bool:
        same = one.request.max_new_tokens == other.request.max_new_tokens
        return same or not self._one_length

    def _answer(self, jobs: list[Job]) -> None:
        """Answer a batch; if it fails, answer each request alone, so that one fails for itself."""
        try:
            self._run(jobs)
        except Exception as error:
            log.warning("a batch of %d requests failed: %s", len(jobs), one_line(error))
            for job in jobs:
                self._answer_alone(job, error if job.started or len(jobs) == 1 else None)

    def _answer_alone(self, job: Job, error: Exception | None) -> None:
        if error is None:  # the batch failed before the request got any text
            try:
                self._run([job])
                return
            except Exception as reason:
                error = reason
        job.fail(error)

    def _run(self, jobs: list[Job]) -> None:
        requests = [job.request for job in jobs]
        start = time.monotonic()
        answers = self._model.answer(requests, lambda row, text: jobs[row].receive(text))
        seconds = time.monotonic() - start
        self._recent.append(seconds)
        if self.observer is not None:
            self.observer.count_batch(len(jobs), seconds)
            self.observer.count_answers(requests, answers)
        for job, answer in zip(jobs, answers, strict=True):
            job.finish(answer)
