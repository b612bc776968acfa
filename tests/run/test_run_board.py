"""TensorBoard of a run is one file that a resumed run continues where its checkpoint was made."""

from __future__ import annotations

import logging
import os
import signal
import struct
from pathlib import Path

import pytest
from run_digests import logged_steps
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from dmole.run.board import BoardPosition, RunBoard
from dmole.run.events import cut

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63f8ffff3f0005fe02fe0def46b80000000049454e44ae426082"
)  # one white pixel


def board_of(run: Path) -> RunBoard:
    return RunBoard(run.parent, name="", version=run.name)


def steps(run: Path) -> list[tuple[int, float]]:
    """Return what TensorBoard reads, without its own handling of doubled steps."""
    events = EventAccumulator(str(run), purge_orphaned_data=False).Reload()
    return [(event.step, event.value) for event in events.Scalars("a")]


def logged(run: Path, *numbers: int, close: bool = True) -> RunBoard:
    board = board_of(run)
    for number in numbers:
        board.log_metrics({"a": 1.0}, step=number)
        if close:
            board.finalize("success")  # as Lightning does after each fit and test
    return board


def test_all_fits_of_a_run_share_one_file_and_nothing_is_empty(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    board = board_of(tmp_path)
    board.save()
    before = board.position()
    assert before is not None
    assert before.size == 0
    assert not list(tmp_path.iterdir())
    board_of(tmp_path).resume(before)
    assert not caplog.text
    board = logged(tmp_path, 1, 2, 3)
    (file,) = tmp_path.iterdir()
    assert steps(tmp_path) == [(1, 1.0), (2, 1.0), (3, 1.0)]
    assert board.position() == BoardPosition(file.name, file.stat().st_size)


def test_a_run_killed_with_signal_9_is_continued_without_doubled_steps(tmp_path: Path) -> None:
    if not (child := os.fork()):
        try:
            board = logged(tmp_path, 1, 2, close=False)
            position = board.position()
            assert position is not None
            (tmp_path / "size").write_text(str(position.size))
            board.log_metrics({"a": 1.0}, step=3)
            board.save()
            board.experiment.file_writer.event_writer._file.write(b"\x99\0\0\0\0\0\0\0torn")
            board.save()
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)  # a child that fails must not go on with the tests of its parent
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (file,) = tmp_path.glob("events*")
    board = board_of(tmp_path)
    board.resume(BoardPosition(file.name, int((tmp_path / "size").read_text())))
    board.log_metrics({"a": 2.0}, step=3)
    board.finalize("success")
    assert list(tmp_path.glob("events*")) == [file]
    assert steps(tmp_path) == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_the_step_of_a_checkpoint_that_is_logged_after_it_is_kept(tmp_path: Path) -> None:
    board = logged(tmp_path, 1)
    position = board.position(step=2)
    assert position is not None
    for step in (2, 2, 3):
        board.log_metrics({"a": 1.0}, step=step)
    board.finalize("failed")
    board = board_of(tmp_path)
    board.resume(BoardPosition.from_dict(position.to_dict()))
    board.log_metrics({"a": 2.0}, step=3)
    board.finalize("success")
    assert steps(tmp_path) == [(1, 1.0), (2, 1.0), (2, 1.0), (3, 2.0)]


def log_all_kinds(board: RunBoard, step: int) -> None:
    board.log_metrics({"a": 1.0}, step=step)
    board.log_histogram("norms", [0.5, 2.0, 2.5], step)
    board.log_picture("matrix", PNG, (1, 1), step)
    board.log_text("cases", "*x*", step)


def test_no_kind_of_record_is_doubled_by_a_resume(tmp_path: Path) -> None:
    board = board_of(tmp_path)
    log_all_kinds(board, 0)
    position = board.position()
    assert position is not None
    for run in (board, board_of(tmp_path)):
        if run is not board:
            run.resume(BoardPosition.from_dict(position.to_dict()))
        log_all_kinds(run, 1)
        run.log_hyperparams({"rank": 8, "router": "R", "common": True}, {"final/Last": 90.0}, 1)
        run.finalize("success")
    layout = "custom_scalars__config__"
    tags = ("a", "norms", "matrix", "cases/text_summary")
    steps = logged_steps(tmp_path)
    assert steps == {tag: [0, 1] for tag in tags} | {layout: [0], "final/Last": [1]}


def test_settings_and_final_figures_are_in_the_file_of_the_run(tmp_path: Path) -> None:
    board = board_of(tmp_path / "version_0")
    board.log_hyperparams({"rank": 8, "router": "R"}, {"final/Last": 90.0}, 5)
    board.finalize("success")
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
    found = EventAccumulator(str(tmp_path / "version_0")).Reload()
    contents = found.PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(contents["_hparams_/session_start_info"])
    assert start.session_start_info.hparams["rank"].number_value == 8
    assert b"final/Last" in contents["_hparams_/experiment"]


def test_records_that_a_power_failure_has_cut_are_left_out(tmp_path: Path) -> None:
    logged(tmp_path, 1, 2, 3)
    (file,) = tmp_path.iterdir()
    size = file.stat().st_size
    os.truncate(file, size - 3)
    board = board_of(tmp_path)
    board.resume(BoardPosition(file.name, size))
    board.log_metrics({"a": 2.0}, step=3)
    board.finalize("success")
    assert steps(tmp_path) == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_what_no_record_can_be_is_cut_off_without_reading_it(tmp_path: Path) -> None:
    logged(tmp_path, 1, 2)
    (file,) = tmp_path.iterdir()
    size = file.stat().st_size
    os.truncate(file, size + 160)  # zeros, as a power failure leaves them
    cut(file, size + 320)
    assert file.stat().st_size == size
    length = struct.pack("<Q", 2**38)
    with file.open("ab") as events:
        events.write(length + struct.pack("<I", masked_crc32c(length)))
        events.truncate(size + 2**38 + 16)
    cut(file, size, step=3)
    assert file.stat().st_size == size


def test_a_lost_file_begins_again_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    board = logged(tmp_path, 1, close=False)
    (file,) = tmp_path.iterdir()
    file.unlink()
    with caplog.at_level(logging.WARNING, "dmole"):
        board.check()
    assert "events of TensorBoard were deleted" in caplog.text
    board.log_metrics({"a": 2.0}, step=2)
    board.finalize("success")
    assert list(tmp_path.iterdir()) == [file]
    assert steps(tmp_path) == [(2, 2.0)]


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    outside, run = tmp_path / "precious", tmp_path / "run"
    outside.write_text("kept")
    run.mkdir()
    name = "events.out.tfevents.1.host.1.0"
    (run / name).symlink_to(outside)
    board = board_of(run)
    board.resume(BoardPosition(name, 0))
    board.log_metrics({"a": 1.0}, step=1)
    board.finalize("success")
    assert outside.read_text() == "kept"


@pytest.mark.parametrize(
    ("name", "size"),
    [("../events.out.tfevents.1", 1), ("config.yaml", 1), ("events.out.tfevents.1", -1), (3, 1)],
)
def test_a_checkpoint_cannot_name_another_file(name: object, size: int) -> None:
    with pytest.raises(ValueError, match="events"):
        BoardPosition.from_dict({"file": name, "size": size})
