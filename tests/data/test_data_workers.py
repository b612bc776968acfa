"""The loss of a data worker is one line with its cause."""

from __future__ import annotations

import os
import re
import signal
import sys

import pytest
from torch.utils.data import DataLoader

from dmole.cli import main as cli
from dmole.data import shared_memory
from dmole.data.workers import WorkerError, explain_lost_worker


class Kills(list[int]):
    """Samples whose reading ends the worker."""

    def __init__(self, number: int) -> None:
        super().__init__([number])

    def __getitem__(self, index: object) -> int:
        os.kill(os.getpid(), super().__getitem__(0)) if super().__getitem__(0) else os._exit(3)
        return 0


@pytest.mark.parametrize(
    ("number", "total", "cause"),
    [
        (signal.SIGBUS, 2**26, r"was killed \(Bus error\); /dev/shm has 64 MB, 1 MB of it free: "
         "give the container more, as with docker run --shm-size=8g, or lower data.num_workers"),
        (signal.SIGKILL, 2**26, r"was killed \(Killed\), as the system does when memory runs out: "
         "lower data.num_workers"),
        (0, 2**26, "ended unexpectedly; /dev/shm has 64 MB, 1 MB of it free: give .*"),
        (0, 2**40, "ended unexpectedly: data.num_workers 0 shows the cause"),
    ],
)  # fmt: skip
def test_the_loss_of_a_worker_is_one_line_with_its_cause(
    number: int, total: int, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "sizes", lambda: (total, 2**20))
    with pytest.raises(RuntimeError) as raised:
        list(DataLoader(Kills(number), num_workers=1, multiprocessing_context="fork"))
    error = explain_lost_worker(raised.value)
    assert isinstance(error, WorkerError)
    assert re.fullmatch(rf"data worker \(process \d+\) {cause}", str(error))


def test_other_errors_stay_as_they_are() -> None:
    for error in (RuntimeError("CUDA out of memory"), ValueError("DataLoader worker (pid 1)")):
        assert explain_lost_worker(error) is error


def test_the_command_line_prints_that_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def predict(words: list[str]) -> int:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(sys.modules[cli.__module__], "_predict", predict)
    assert cli(["predict"]) == 1
    assert capsys.readouterr().err == (
        "dmole: data worker (process 7) was killed (Killed), as the system does when memory runs "
        "out: lower data.num_workers\n"
    )
