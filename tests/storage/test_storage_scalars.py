from __future__ import annotations

from pathlib import Path

import pytest

from dmole.run.events import ContinuedWriter
from dmole.storage.scalars import read_scalars


@pytest.fixture
def events(tmp_path: Path) -> Path:
    path = tmp_path / "events.out.tfevents.1.host.1.0"
    writer = ContinuedWriter(path)
    for step, value in enumerate([2.0, float("nan"), 0.5]):
        writer.add_scalar("train/loss", value, step)
        writer.add_scalar("other", 7.0, step)
    writer.add_png("picture", b"\x89" * (2 << 20), (1, 1), 2)  # larger than a record of scalars
    writer.add_scalar("train/loss", 0.25, 3)
    writer.close()
    return path


def losses(path: Path) -> list[tuple[int, float]]:
    return [(step, value) for _, step, value in read_scalars(path, "train/loss".__eq__)]


def test_finite_scalars_are_read_in_order_and_pictures_are_skipped(events: Path) -> None:
    assert losses(events) == [(0, 2.0), (2, 0.5), (3, 0.25)]


def test_a_record_that_is_being_written_is_left_out(events: Path) -> None:
    whole = events.read_bytes()
    for missing in (1, 4, 10, 30):
        events.write_bytes(whole[:-missing])
        assert losses(events)[:2] == [(0, 2.0), (2, 0.5)]
        assert len(losses(events)) == 2 + (missing <= 4)  # only a checksum is missing


@pytest.mark.parametrize("content", [b"\xff" * 40, b"\x05" + bytes(11) + b"\xff" * 9])
def test_what_is_no_file_of_events_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read events .*tfevents\.1: a record"):
        losses(path)
