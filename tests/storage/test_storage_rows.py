"""A file of rows: whatever happens to it, it gives the rows that were added, or none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmole.storage.rows import RowFile

WIDTH = 3
ORIGIN = {"base": "x", "samples": "y"}
NAMES = [f"ü{index}" for index in range(7)]
ROWS = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(0))


def opened(path: Path, **origin: str) -> RowFile:
    return RowFile(path, ORIGIN | origin, WIDTH)


def filled(path: Path) -> RowFile:
    """Return a file of three blocks with seven rows."""
    file = opened(path)
    for part in (slice(0, 2), slice(2, 3), slice(3, 7)):
        file.add(NAMES[part], ROWS[part])
    return file


def check(found: dict[str, Tensor]) -> int:
    """Check that all rows are those that were added; return their number."""
    assert all(torch.equal(row, ROWS[NAMES.index(name)]) for name, row in found.items())
    return len(found)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "a.rows"


def test_rows_are_read_to_the_bit_by_the_writer_and_by_others(path: Path) -> None:
    early = opened(path)
    writer = filled(path)
    for file in (writer, opened(path)):
        assert check(file.found([*NAMES, "none"])) == len(file) == 7
        assert NAMES[0] in file
        assert "none" not in file
    assert early.found(NAMES) == {}
    early.refresh()
    assert check(early.found(NAMES[2:])) == 5


BYTES = st.one_of(st.integers(1, 300), st.integers(1, 2348))  # blocks alone, or the header too


@settings(max_examples=60)
@given(cut=st.one_of(st.just(0), BYTES), flip=st.one_of(st.none(), BYTES))
def test_a_file_that_was_cut_or_changed_gives_right_rows_or_none_and_takes_new_ones(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int | None
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.rows"
    filled(path)
    content = bytearray(path.read_bytes())
    assert len(content) == 2348
    if flip is not None:
        content[-flip] ^= 16
    content = content[: len(content) - cut]
    path.write_bytes(content)
    file = opened(path)
    found = file.found(NAMES)
    check(found)
    missing = [name for name in NAMES if name not in found]
    if missing:
        file.add(missing, ROWS[[NAMES.index(name) for name in missing]])
    assert check(file.found(NAMES)) == check(opened(path).found(NAMES)) == 7


def test_a_file_of_another_origin_is_named_unused_and_replaced(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(path)
    other = opened(path, base="z")
    other.refresh()
    assert other.found(NAMES) == {}
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} was made with another base; what it lacks is computed again"
    ]
    other.add(NAMES[:1], -ROWS[:1])
    assert torch.equal(opened(path, base="z").found(NAMES)[NAMES[0]], -ROWS[0])
    assert opened(path).found(NAMES) == {}


def test_a_file_with_another_link_is_copied_before_it_grows(path: Path) -> None:
    filled(path)
    before, link = path.read_bytes(), path.with_name("b.rows")
    os.link(path, link)
    file = opened(link)
    file.add(["more"], ROWS[:1])
    assert path.read_bytes() == before
    assert (
        check({k: v for k, v in opened(link).found([*NAMES, "more"]).items() if k != "more"}) == 7
    )
    assert link.stat().st_nlink == 1


def test_a_file_that_is_deleted_or_replaced_meanwhile_is_no_error(path: Path) -> None:
    file = filled(path)
    path.unlink()
    assert file.found(NAMES) == {}
    file.add(NAMES[:2], ROWS[:2])
    assert check(file.found(NAMES)) == 2
    path.unlink()
    os.mkfifo(path)
    assert file.found(NAMES) == opened(path).found(NAMES) == {}
    file.add(NAMES[:1], ROWS[:1])  # a file takes the place of the pipe
    assert check(opened(path).found(NAMES)) == 1


def test_rows_that_are_not_finite_or_of_another_width_are_refused(path: Path) -> None:
    file = opened(path)
    file.add(["a", "b"], torch.tensor([[1.0, torch.nan, 1.0], [1.0, 1.0, 1.0]]))
    assert list(file.found(["a", "b"])) == ["b"]
    with pytest.raises(ValueError, match="rows of 3 numbers"):
        file.add(["c"], torch.ones(1, 2))
    assert RowFile(path, ORIGIN, 2).found(["b"]) == {}
