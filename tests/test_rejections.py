"""The window of rejected samples and its alarms."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dmole.rejections import Alarm, RejectionWindow


def alarms(flags: str, window: int, limit: float) -> dict[int, Alarm]:
    """Return the alarms by position; ``x`` is a rejected sample."""
    watched = RejectionWindow(window, limit)
    found = ((i, watched.add(flag == "x")) for i, flag in enumerate(flags))
    return {position: alarm for position, alarm in found if alarm is not None}


def test_the_share_must_exceed_the_limit_and_missing_samples_count_as_accepted() -> None:
    assert alarms("xx", 4, 0.5) == {}
    assert alarms("xxx", 4, 0.5) == {2: Alarm(rejected=3, window=4, length=3)}
    assert alarms("x.x.x.x.x.", 4, 0.5) == {}


def test_rejections_that_have_left_the_window_do_not_count() -> None:
    assert alarms("xx....xx..", 4, 0.5) == {}


def test_an_alarm_goes_back_to_where_the_rejections_exceed_the_limit_most() -> None:
    # the first rejection is an outlier of the old task: four accepted samples follow it
    assert alarms("x....xx.xx", 10, 0.4) == {9: Alarm(5, 10, length=5)}
    # one accepted sample after the first rejection does not outweigh it
    assert alarms("....x.xxxx", 10, 0.4) == {9: Alarm(5, 10, length=6)}


def test_one_passage_of_the_limit_raises_one_alarm() -> None:
    assert list(alarms("xxxx.x.xx.", 4, 0.5)) == [2]
    assert list(alarms("xxx...xxx", 4, 0.5)) == [2, 8]  # the share fell to a quarter between


def test_a_cleared_window_has_forgotten_samples_and_alarm() -> None:
    watched = RejectionWindow(4, 0.5)
    assert [watched.add(True) is not None for _ in range(3)] == [False, False, True]
    watched.clear()
    assert watched.rejected == 0
    assert [watched.add(True) is not None for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(
    ("window", "limit", "name"), [(1, 0.5, "window"), (8, 0.1, "limit"), (8, 1.0, "limit")]
)
def test_a_window_that_one_sample_fills_or_none_can_is_refused(
    window: int, limit: float, name: str
) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        RejectionWindow(window, limit)


def test_the_window_needs_no_torch() -> None:
    code = "import sys, dmole.rejections; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
