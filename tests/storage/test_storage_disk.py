"""Errors of the disk name their file; what a file system cannot do is one warning."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from dmole.callbacks.answers import AnswerJournal
from dmole.report.style import save_figure
from dmole.run.board import RunBoard
from dmole.run.checkpoint_file import save_checkpoint
from dmole.storage import files
from dmole.storage.files import write_csv, write_json, write_lines
from dmole.storage.tensors import write_tensor_file


@pytest.fixture(autouse=True)
def _unwarned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_warned", set())


@contextmanager
def file_size(limit: int) -> Iterator[None]:
    """Let the system refuse to write a file beyond a size, as a full disk does."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def write_journal(path: Path) -> None:
    journal = AnswerJournal()
    journal.open(path, "routed", {}, {})
    journal.add(["a" * 300], ["b"], [()])


def draw(path: Path) -> None:
    save_figure(Figure(), path)


WRITERS: list[Callable[[Path], Any]] = [
    lambda path: write_json(path, "x" * 300),
    lambda path: write_lines(path, [{"a": "x" * 300}]),
    lambda path: write_csv(path, ["a"], [{"a": "x" * 300}]),
    lambda path: write_tensor_file(path, {"a": torch.zeros(300)}),
    lambda path: save_checkpoint({"a": torch.zeros(300)}, path),
    draw,
    write_journal,
]


@pytest.mark.parametrize("write", WRITERS)
def test_a_file_that_cannot_be_written_completely_is_named(
    write: Callable[[Path], Any], tmp_path: Path
) -> None:
    path = tmp_path / "name.png"
    with file_size(200), pytest.raises(OSError, match=r"File too large.*name\.png"):
        write(path)
    assert [entry.name for entry in tmp_path.iterdir()] in ([], ["name.png"])  # a journal stays


def fails(number: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("function", ["fsync", "close"])
@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC, errno.EIO])
def test_an_error_that_is_reported_late_names_the_file(
    function: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.os, function, fails(number))
    with pytest.raises(OSError, match=rf"{os.strerror(number)}: '\S*a\.json'"):
        write_json(tmp_path / "a.json", {})


def test_a_renaming_that_fails_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "replace", fails(errno.EDQUOT))
    with pytest.raises(OSError, match=r"'\S*a\.json'"):
        write_json(tmp_path / "a.json", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
@pytest.mark.parametrize("kind", ["files", "folders"])
def test_a_file_system_that_does_not_flush_is_one_warning(
    number: int,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    usual = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == (kind == "folders"):
            fails(number)()
        usual(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)
    with caplog.at_level(logging.WARNING, "dmole"):
        for name in ("a", "b", "c"):
            write_json(tmp_path / name / "x.json", name)
    assert json.loads((tmp_path / "c" / "x.json").read_text()) == "c"
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'a'}: this file system does not flush {kind}, so a power failure may undo "
        f"writes ({os.strerror(number)})"
    ]


def test_a_file_system_without_permissions_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Path, "chmod", fails(errno.EPERM))
    with caplog.at_level(logging.WARNING, "dmole"):
        for name in ("a", "b"):
            with files.atomic_path(tmp_path / name) as temporary:
                temporary.unlink()  # some writers replace the file
                os.close(os.open(temporary, os.O_CREAT, 0o600))
    assert ["sets no permissions" in record.getMessage() for record in caplog.records] == [True]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b"]


def test_events_that_cannot_be_written_name_their_folder(tmp_path: Path) -> None:
    board = RunBoard(tmp_path, name="x", version=0)
    board.log_metrics({"a": 1.0}, step=0)
    board.save()
    writer = board.experiment.file_writer.event_writer
    writer.flush = fails(errno.ENOSPC)
    with pytest.raises(OSError, match=r"No space left on device: '\S*x/version_0/events"):
        board.save()
    writer.flush = lambda: None
    board.finalize("success")
