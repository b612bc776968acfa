"""The engine puts waiting requests into common batches and loses none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest

from dmole.data import Turn
from dmole.inference import Answer, Request
from dmole.serving.engine import Engine
from dmole.serving.errors import ApiError
from dmole.serving.jobs import Ended, Job
from dmole.serving.limits import Limits


class Echo:
    """Answers with the words of the prompt, one word at a time; `gate` holds each batch up."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[str]] = []

    def answer(
        self, requests: Sequence[Request], on_text: Callable[[int, str], bool] | None = None
    ) -> list[Answer]:
        texts = [request.turns[-1].text for request in requests]
        self.batches.append(texts)
        assert self.gate.wait(30)
        assert on_text is not None
        if "unreadable" in texts:
            raise ValueError("one of the requests is unreadable")
        answers = []
        for row, text in enumerate(texts):
            words = text.split()
            taken = next((n for n, word in enumerate(words) if not on_text(row, word)), len(words))
            if "breaks" in words:
                raise RuntimeError("the device is gone")
            reason = "stop" if taken == len(words) else "cancelled"
            answers.append(Answer(text, (), new_tokens=taken, finish_reason=reason))
        return answers


def ask(text: str) -> Request:
    return Request((Turn("user", text),))


def run(test: Callable[[Engine, Echo], object], **limits: float) -> None:
    """Run a coroutine with an engine of its own."""

    async def body() -> None:
        model = Echo()
        engine = Engine(model, Limits(**limits))  # type: ignore[arg-type]
        engine.start()
        try:
            await test(engine, model)  # type: ignore[misc]
        finally:
            model.gate.set()
            await asyncio.to_thread(engine.close)

    asyncio.run(body())


async def wait_until_busy(model: Echo) -> None:
    while not model.batches:
        await asyncio.sleep(0.001)


async def outcome(job: Job) -> str:
    try:
        return (await job.end())[0]
    except Exception as error:
        return repr(error)


def test_requests_that_wait_share_batches_in_their_order() -> None:
    async def test(engine: Engine, model: Echo) -> None:
        model.gate.clear()
        jobs = [Job(ask(str(number))) for number in range(8)]
        engine.submit(jobs[0])
        await wait_until_busy(model)
        for job in jobs[1:]:
            engine.submit(job)
        model.gate.set()
        assert [await outcome(job) for job in jobs] == [str(number) for number in range(8)]
        assert model.batches == [["0"], ["1", "2", "3"], ["4", "5", "6"], ["7"]]

    run(test, max_batch=3, max_wait_ms=0)


def test_a_request_that_cannot_be_answered_fails_for_itself() -> None:
    async def test(engine: Engine, model: Echo) -> None:
        jobs = [Job(ask(text)) for text in ("a", "unreadable", "b")]
        for job in jobs:
            engine.submit(job)
        found = [await outcome(job) for job in jobs]
        assert found == ["a", "ValueError('one of the requests is unreadable')", "b"]

    run(test, max_wait_ms=50)


def test_a_failure_in_the_middle_repeats_no_text_and_the_engine_goes_on() -> None:
    async def test(engine: Engine, model: Echo) -> None:
        jobs = [Job(ask(text)) for text in ("begun", "breaks", "waits")]
        for job in jobs:
            engine.submit(job)
        gone = "RuntimeError('the device is gone')"
        assert [await outcome(job) for job in jobs] == [gone, gone, "waits"]
        later = Job(ask("later"))
        engine.submit(later)
        assert await outcome(later) == "later"

    run(test, max_wait_ms=50)


def test_a_full_queue_refuses_with_the_time_to_wait_and_keeps_what_it_has() -> None:
    async def test(engine: Engine, model: Echo) -> None:
        model.gate.clear()
        jobs = [Job(ask(str(number))) for number in range(4)]
        engine.submit(jobs[0])
        await wait_until_busy(model)
        for job in jobs[1:3]:
            engine.submit(job)
        with pytest.raises(ApiError, match="2 requests wait already") as refused:
            engine.submit(jobs[3])
        assert refused.value.status == 429
        assert int(refused.value.headers["Retry-After"]) >= 1
        jobs[1].cancel()  # a client that leaves makes room
        engine.submit(jobs[3])
        model.gate.set()
        assert [await outcome(jobs[row]) for row in (0, 2, 3)] == ["0", "2", "3"]
        assert ["1"] not in model.batches

    run(test, max_batch=1, max_queue=2, max_wait_ms=0)


def test_a_cancelled_request_ends_and_the_others_of_its_batch_do_not() -> None:
    async def test(engine: Engine, model: Echo) -> None:
        model.gate.clear()
        jobs = [Job(ask("one two three")), Job(ask("four five"))]
        for job in jobs:
            engine.submit(job)
        await wait_until_busy(model)
        jobs[0].cancel()
        model.gate.set()
        assert await outcome(jobs[1]) == "fourfive"
        _, end = await jobs[0].end()
        assert end.answer.new_tokens == 0

    run(test, max_wait_ms=50)


def test_a_stop_sequence_ends_the_answer_in_the_model() -> None:
    async def test(engine: Engine, model: Echo) -> None:
        job = Job(ask("one two three four"), ["xx", "thr"])
        engine.submit(job)
        text, end = await job.end()
        assert (text, end.finish_reason, end.answer.new_tokens) == ("onetwo", "stop", 2)
        assert isinstance(end, Ended)

    run(test)


def test_a_task_runs_between_two_batches() -> None:
    async def test(engine: Engine, model: Echo) -> None:
        model.gate.clear()
        jobs = [Job(ask(str(number))) for number in range(2)]
        engine.submit(jobs[0])
        await wait_until_busy(model)
        engine.submit(jobs[1])
        seen = engine.between_batches(lambda: list(model.batches))
        fails = engine.between_batches(lambda: 1 / 0)
        model.gate.set()
        assert await asyncio.wrap_future(seen) == [["0"]]
        with pytest.raises(ZeroDivisionError):
            await asyncio.wrap_future(fails)
        assert await outcome(jobs[1]) == "1"

    run(test, max_batch=1, max_wait_ms=0)


def test_a_closed_engine_answers_what_waits_and_takes_no_more() -> None:
    async def test(engine: Engine, model: Echo) -> None:
        model.gate.clear()
        jobs = [Job(ask(str(number))) for number in range(5)]
        for job in jobs:
            engine.submit(job)
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        while not engine.is_closed:
            await asyncio.sleep(0.001)
        with pytest.raises(ApiError, match="shutting down"):
            engine.check_room()
        model.gate.set()
        await closing
        assert [await outcome(job) for job in jobs] == [str(number) for number in range(5)]
        assert not engine.is_alive

    run(test, max_batch=2)


def test_a_beam_search_gets_batches_of_one_length() -> None:
    async def body() -> None:
        model = Echo()
        model.gate.clear()
        engine = Engine(model, Limits(max_wait_ms=0), one_length=True)
        engine.start()
        lengths = [1, 2, 2, 1, 2]
        jobs = [
            Job(Request((Turn("user", f"{row}"),), max_new_tokens=length))
            for row, length in enumerate(lengths)
        ]
        engine.submit(jobs[0])
        await wait_until_busy(model)
        for job in jobs[1:]:
            engine.submit(job)
        model.gate.set()
        assert [await outcome(job) for job in jobs] == ["0", "1", "2", "3", "4"]
        assert model.batches == [["0"], ["1", "2", "4"], ["3"]]
        await asyncio.to_thread(engine.close)

    asyncio.run(body())
