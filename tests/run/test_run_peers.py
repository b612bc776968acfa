"""A failure of one process ends the others with its message."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from dmole.distributed import gather_objects
from dmole.run import PeerError, PeerWatch, store_channel
from dmole.run.peers import describe_end, watch_parent

SECONDS = 30
"""All processes must be gone by then; one that hangs would stay for half an hour."""


Act = Callable[[int, PeerWatch], Any]


def on_rank(rank: int, size: int, port: int, act: Act, errors: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.dup2(os.open(f"{errors}/{rank}", os.O_CREAT | os.O_WRONLY), 2)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    watch = PeerWatch(lambda: "resume with --ckpt_path runs/x")
    watch.start()
    try:
        act(rank, watch)
    except BaseException as error:
        cause = watch.announce(error)
        os.write(2, f"{type(cause).__name__}: {cause}\n".encode())
        sys.exit(1)
    watch.stop()


def run(act: Act, folder: Path, size: int = 2) -> tuple[list[int | None], list[str]]:
    """Return exit status and standard error of the ranks."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=on_rank, args=(rank, size, port, act, str(folder)))
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + SECONDS
    for process in ranks:
        process.join(max(0.1, deadline - time.monotonic()))
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    return codes, [(folder / str(rank)).read_text() for rank in range(size)]


def refuse(address: tuple[str, int], timeout: float) -> socket.socket:
    """Stand in for `socket.create_connection` behind a firewall."""
    raise TimeoutError("timed out")


@pytest.fixture(params=["direct", "store"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return how the ranks hear from each other."""
    if request.param == "store":
        monkeypatch.setattr(socket, "create_connection", refuse)
        monkeypatch.setattr(store_channel, "SILENCE", 1.0)
        monkeypatch.setattr(store_channel, "_BEAT", 0.1)
    return str(request.param)


def fails_while_the_other_waits(failing: int) -> Act:
    def act(rank: int, watch: PeerWatch) -> None:
        if rank == failing:
            raise ValueError(f"image of rank {rank} is broken")
        time.sleep(10 * SECONDS)  # as in a collective operation that never ends

    return act


@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_waits_for_ever_ends_with_the_message_of_the_one_that_failed(
    failing: int, way: str, tmp_path: Path
) -> None:
    codes, said = run(fails_while_the_other_waits(failing), tmp_path)
    assert codes == [1, 1]
    assert said[failing] == f"ValueError: image of rank {failing} is broken\n"
    other = 1 - failing
    cause = f"rank {failing} failed: image of rank {failing} is broken"
    assert said[other] == f"dmole: rank {other} ends: {cause}\n"


def fails_before_a_gather(rank: int, watch: PeerWatch) -> None:
    if rank == 1:
        watch.announce(ValueError("no such sample"))
        os._exit(1)
    gather_objects(rank)


def test_the_consequence_of_a_failure_elsewhere_is_reported_as_that_failure(
    way: str, tmp_path: Path
) -> None:
    codes, said = run(fails_before_a_gather, tmp_path)
    assert codes == [1, 1]
    assert said[0] == "dmole: rank 0 ends: rank 1 failed: no such sample\n"


def is_killed(killed: int, waits: bool) -> Act:
    def act(rank: int, watch: PeerWatch) -> None:
        if rank == killed:
            if waits:  # with a copy of all its connections, like a loader worker
                multiprocessing.get_context("fork").Process(target=time.sleep, args=(2,)).start()
            (Path(os.readlink("/proc/self/fd/2")).parent / "pid").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        if waits:
            time.sleep(10 * SECONDS)
        gather_objects(rank)

    return act


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("killed", [0, 1])
def test_the_last_line_names_the_rank_that_was_killed_and_how_to_resume(
    killed: int, waits: bool, way: str, tmp_path: Path
) -> None:
    codes, said = run(is_killed(killed, waits), tmp_path)
    other = 1 - killed
    assert (codes[killed], codes[other]) == (-signal.SIGKILL, 1)
    name = f"rank {killed} (process {(tmp_path / 'pid').read_text()} on {socket.gethostname()})"
    cause = f"{name} is lost; resume with --ckpt_path runs/x"
    *before, last = said[other].splitlines()
    assert last == f"dmole: rank {other} ends: {cause}"
    assert before == [] or way == "store"  # torch warns that the store is gone


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL, as the system does when memory runs out"),
        ("os.kill(os.getpid(), 6)", "killed by SIGABRT"),
        ("sys.exit(3)", "ended with status 3"),
        ("time.sleep(60)", "it closed its connection but still runs"),
    ],
)
def test_the_end_of_a_child_is_described(code: str, end: str) -> None:
    with subprocess.Popen([sys.executable, "-c", f"import os, sys, time; {code}"]) as child:
        patience = 0.1 if "sleep" in code else SECONDS
        assert describe_end(child, patience) == end
        child.kill()


CHILD_LOST = """
import subprocess, sys, time
from dmole.run.peers import watch_children
children = [subprocess.Popen([sys.executable, "-c", f"import time, sys; {text}"])
            for text in ("time.sleep(300)", "sys.exit(4)")]
print(*(child.pid for child in children), flush=True)
watch_children(children)
time.sleep(300)  # as in a connection that is never made
"""


@pytest.mark.slow
def test_a_child_that_ends_before_all_ranks_are_connected_ends_the_others() -> None:
    words = [sys.executable, "-W", "ignore", "-c", CHILD_LOST]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
    waits, lost = done.stdout.split()
    assert done.returncode == 1
    assert done.stderr == (
        f"dmole: rank 2 (process {lost}) is lost: ended with status 4, "
        "before all ranks were connected\n"
    )
    deadline = time.monotonic() + SECONDS
    while Path("/proc", waits).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path("/proc", waits).exists()


def ends_well(rank: int, watch: PeerWatch) -> None:
    assert gather_objects(rank) == [0, 1]
    dist.barrier()


def test_processes_that_end_well_are_left_alone(way: str, tmp_path: Path) -> None:
    assert run(ends_well, tmp_path) == ([0, 0], ["", ""])


@pytest.mark.parametrize("failing", [1, 2])
def test_rank_0_passes_a_failure_on_between_ranks_that_reach_it_in_different_ways(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = socket.create_connection

    def refuse_last(*address: Any) -> socket.socket:
        return refuse(*address) if dist.get_rank() == 2 else create(*address)

    def warn(text: str) -> None:
        os.write(2, f"{text}\n".encode())

    monkeypatch.setattr(socket, "create_connection", refuse_last)
    monkeypatch.setattr(store_channel, "_BEAT", 0.1)
    monkeypatch.setattr(logging.getLogger("dmole"), "warning", warn)
    codes, said = run(fails_while_the_other_waits(failing), tmp_path, size=3)
    assert codes == [1, 1, 1]
    warning, *rest = said[0].splitlines()
    assert re.fullmatch(
        rf"rank 2 cannot connect to port \d+ of rank 0 on {socket.gethostname()}: watched through "
        r"MASTER_PORT \d+, where .* after 60 seconds instead of at once",
        warning,
    )
    cause = f"rank {failing} failed: image of rank {failing} is broken"
    other = 3 - failing
    assert rest == [f"dmole: rank 0 ends: {cause}"]
    assert said[other] == f"dmole: rank {other} ends: {cause}\n"


def test_a_single_process_has_no_peers_to_watch() -> None:
    watch, error = PeerWatch(), ValueError("mine")
    watch.start()
    assert watch.announce(error) is error
    assert issubclass(PeerError, ValueError)


STARTED = """
import os, sys, time
from dmole.run.peers import describe_end, watch_parent
watch_parent(os.getppid())
print("watching", flush=True)
time.sleep(300)
"""
STARTER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid)
"""


def test_a_process_ends_soon_after_the_one_that_started_it() -> None:
    words = [sys.executable, "-W", "ignore", "-c", STARTER, STARTED]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    child = Path("/proc") / done.stdout.strip()
    deadline = time.monotonic() + SECONDS
    while child.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not child.exists()


def test_a_process_whose_starter_is_gone_already_does_not_begin() -> None:
    with pytest.raises(PeerError, match="that started this one is gone"):
        watch_parent(os.getppid() + 1)
