"""Claiming, finding and locking run folders."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dmole.run import RunLock, claim_run, find_run
from dmole.run.opening import agree_on_opening, decide_opening
from dmole.run.run_folder import LAST
from dmole.storage.files import atomic_path, remove_parts


def finished(run: Path) -> Path:
    (run / LAST).parent.mkdir(parents=True, exist_ok=True)
    (run / LAST).touch()
    return run


def test_runs_are_numbered_and_gaps_are_not_filled(tmp_path: Path) -> None:
    assert [claim_run(tmp_path, "a", None).name for _ in range(2)] == ["version_0", "version_1"]
    claim_run(tmp_path, "a", 7)
    assert claim_run(tmp_path, "a", None).name == "version_8"


def test_a_fixed_version_that_exists_is_refused(tmp_path: Path) -> None:
    claim_run(tmp_path, "a", 3)
    with pytest.raises(ValueError, match=r"version_3 exists; choose another trainer\.version"):
        claim_run(tmp_path, "a", 3)


def test_the_newest_run_with_a_checkpoint_is_found_by_number_not_by_name(tmp_path: Path) -> None:
    assert find_run(tmp_path, "a", None) is None
    for number in (2, 10):
        finished(claim_run(tmp_path, "a", number))
    claim_run(tmp_path, "a", 11)  # nothing saved yet
    assert find_run(tmp_path, "a", None).name == "version_10"
    assert find_run(tmp_path, "a", 2).name == "version_2"
    assert find_run(tmp_path, "a", 11) is None


def test_last_requires_a_run_and_auto_starts_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run of .*a to resume"):
        decide_opening(tmp_path, "a", None, "last")
    opening = decide_opening(tmp_path, "a", None, "auto")
    assert opening.checkpoint is None
    finished(opening.run)
    for word in ("last", "auto", str(opening.run), str(opening.run / LAST)):
        found = decide_opening(tmp_path, "a", None, word)
        assert (found.run.name, found.checkpoint) == ("version_0", opening.run / LAST)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint .*nowhere"):
        decide_opening(tmp_path, "a", None, str(tmp_path / "nowhere"))


def test_one_process_decides_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMOLE_OPENING", "")
    opening = agree_on_opening(None, lambda: decide_opening(tmp_path, "a", None, None), 0)
    assert opening.run == tmp_path / "a" / "version_0"


HOLD = """
import os, sys, time
from pathlib import Path
from dmole.run.run_folder import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.acquire()
worker = os.fork()
if worker:
    print(worker, flush=True)
time.sleep(60)
"""


def test_a_folder_in_use_is_refused_until_its_process_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        worker = int(holder.stdout.readline())
        try:
            with pytest.raises(ValueError, match=f"is being written by process {holder.pid} on "):
                RunLock(tmp_path, patience=0.0).acquire()
            holder.kill()
            holder.wait()
            os.kill(worker, 0)  # a loader worker may outlive its parent for seconds
            lock = RunLock(tmp_path)  # a worker not scheduled yet has the lock for a moment
            lock.acquire()
            lock.release()
        finally:
            os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_gives_a_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock = RunLock(tmp_path)
    lock.acquire()
    lock.release()
    assert f"{tmp_path}: this file system has no locks ({os.strerror(number)})" in caplog.text


def test_half_written_files_are_cleared_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".last.ckpt.x.part").touch()
    (tmp_path / "sub" / "last.ckpt").touch()
    remove_parts(tmp_path)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["last.ckpt"]


def write_to_a_full_disk(target: Path) -> None:
    with atomic_path(target) as temporary:
        temporary.write_text("ne")
        raise OSError(28, "No space left on device")


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.json'"):
        write_to_a_full_disk(target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
