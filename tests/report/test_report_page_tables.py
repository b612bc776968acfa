"""The tables of a run that only its page reads."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dmole.report.page.record import RunRecord
from dmole.report.page.sections.costs import seconds_of
from dmole.report.page.sections.modalities import MODALITY
from dmole.report.page.tables_of_run import read_allocation, read_curriculum


def test_allocations_of_both_formats_are_read_alike(tmp_path: Path) -> None:
    path = tmp_path / "allocation.csv"
    path.write_text("stage,task,module,layer,score,expert,rank\n2,paint,vision,vision.0,1.5,1,8\n")
    (first,) = read_allocation(path)
    path.write_text(
        "stage,expert,modality,unit,score,selected,rank\n2,paint,vision,vision.0,1.5,1,8\n"
    )
    assert read_allocation(path) == [first]
    assert (first.expert, first.unit, first.rank) == ("paint", "vision.0", 8)
    path.write_text(path.read_text().replace("1.5", ""))
    assert math.isnan(read_allocation(path)[0].score)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column stage"),
        ("stage,expert,modality,unit,score,rank\n1,a,b", "line 2: 3 cells, expected 6"),
        ("stage,expert,modality,unit,score,rank\n1,a,b,c,inf,8", "line 2: score must be a finite"),
        ("stage,expert,modality,unit,score,rank\nx,a,b,c,1,8", "line 2: stage must be a finite"),
        ('stage,"expert\n', "broken table"),
    ],
)
def test_a_broken_table_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "allocation.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"allocation.csv.*{message}"):
        read_allocation(path)


def test_factors_that_changed_within_a_stage_are_shown_with_their_step(tmp_path: Path) -> None:
    path = tmp_path / "curriculum.csv"
    path.write_text(
        "stage,expert,modality,difficulty,budget,factor,step\n"
        "1,paint,vision,0.25,1,1.0,\n1,paint,vision,0.5,,0.75,40\n"
    )
    assert [row.step for row in read_curriculum(path)] == [None, 40]
    text = MODALITY.draw(RunRecord(tmp_path))
    assert text is not None
    assert "<td>step 40</td>" in text
    assert 'data-sort="0.75">0.75</td>' in text


def test_seconds_of_a_phase_leave_out_phases_inside_it() -> None:
    laps = [
        {"stage": 1, "name": "paint", "phase": phase, "seconds": seconds}
        for phase, seconds in [("allocate", 1), ("train", 5), ("embed", 2), ("router", 3)]
    ]
    found = seconds_of(laps)[1, "paint"]
    assert found == {"allocate": 1.0, "train": 4.0, "embed": 2.0, "router": 1.0}
    assert sum(found.values()) == 8.0  # of the phases that are not inside another
    with pytest.raises(ValueError, match="no stage and seconds in phase 'train'"):
        seconds_of([{"phase": "train"}])
