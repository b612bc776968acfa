from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dmole.metrics import (
    accuracy,
    average,
    backward_transfer,
    forgetting,
    last,
    learning_accuracy,
    mean_average_accuracy,
    read_matrix,
    summarize,
    transfer,
    write_matrix,
)

NAN = math.nan
KEYS = ["AVG", "Last", "Learned", "BWT", "MAA", "ACC", "Forgetting", "Transfer"]
MATRIX = [[1.0, 2.0, 3.0], [90.0, 5.0, 6.0], [85.0, 70.0, 9.0], [80.0, 75.0, 60.0]]


@st.composite
def matrices(draw: st.DrawFn) -> npt.NDArray[np.float64]:
    tasks = draw(st.integers(1, 5))
    shape = (draw(st.integers(0, tasks)) + 1, tasks)
    return draw(arrays(np.float64, shape, elements=st.floats(0, 200)))


def same(ours: npt.ArrayLike, expected: list[float]) -> None:
    np.testing.assert_allclose(np.asarray(ours), expected, rtol=1e-12)


def test_three_tasks_by_hand() -> None:
    same(average(MATRIX), [85.0, 50.0, 25.0])
    same(average(MATRIX, "seen"), [85.0, 72.5, 60.0])
    same(last(MATRIX), [80.0, 75.0, 60.0])
    same(learning_accuracy(MATRIX), [90.0, 70.0, 60.0])
    same(backward_transfer(MATRIX), [-10.0, 5.0, NAN])
    same(forgetting(MATRIX), [10.0, -5.0, NAN])
    same(transfer(MATRIX), [NAN, 3.0, 4.5])
    assert mean_average_accuracy(MATRIX) == pytest.approx((90 + 77.5 + 215 / 3) / 3)
    assert accuracy(MATRIX) == pytest.approx(215 / 3)


@given(*[st.floats(0, 100)] * 4)
def test_two_tasks_in_closed_form(a: float, b: float, c: float, d: float) -> None:
    matrix = [[0, 0], [a, b], [c, d]]
    same(average(matrix), [(a + c) / 2, (b + d) / 2])
    same(last(matrix), [c, d])
    same(backward_transfer(matrix), [c - a, NAN])
    assert mean_average_accuracy(matrix) == pytest.approx((a + (c + d) / 2) / 2)


@given(st.integers(1, 5), st.floats(0, 200))
def test_a_model_that_never_changes_forgets_nothing(tasks: int, score: float) -> None:
    summary = summarize(np.full((tasks + 1, tasks), score), [f"t{i}" for i in range(tasks)])
    for figure in ("AVG", "Last", "MAA", "ACC"):
        assert summary[figure] == pytest.approx(score)
    expected = None if tasks == 1 else 0.0
    for figure in ("BWT", "Forgetting", "Transfer"):
        assert summary[figure] == (None if expected is None else pytest.approx(0.0, abs=1e-9))


@given(matrices())
def test_figures_keep_their_relations(matrix: npt.NDArray[np.float64]) -> None:
    loss = forgetting(matrix)
    change = backward_transfer(matrix)
    known = ~np.isnan(loss)
    assert (known == ~np.isnan(change)).all()
    assert (loss[known] >= -change[known] - 1e-9).all()  # the best score is at least the first
    assert accuracy(matrix) == pytest.approx(float(last(matrix).mean()))
    assert math.isnan(change[-1])


@given(matrices(), st.floats(-50, 50))
def test_shifting_every_score_shifts_levels_but_not_differences(
    matrix: npt.NDArray[np.float64], shift: float
) -> None:
    moved = matrix + shift
    np.testing.assert_allclose(average(moved), average(matrix) + shift, atol=1e-9)
    np.testing.assert_allclose(backward_transfer(moved), backward_transfer(matrix), atol=1e-9)
    np.testing.assert_allclose(transfer(moved), transfer(matrix), atol=1e-9)


@given(matrices(), st.data())
def test_a_missing_cell_makes_figures_missing_never_zero(
    matrix: npt.NDArray[np.float64], data: st.DataObject
) -> None:
    stage = data.draw(st.integers(0, len(matrix) - 1))
    task = data.draw(st.integers(0, matrix.shape[1] - 1))
    matrix = matrix + 1.0
    holed = matrix.copy()
    holed[stage, task] = NAN
    names = [f"t{i}" for i in range(matrix.shape[1])]
    whole, partial = summarize(matrix, names), summarize(holed, names)
    for name in KEYS:
        assert partial[name] is None or partial[name] == whole[name]
    if stage == len(matrix) - 1:
        assert partial["Last"] is partial["ACC"] is None
    json.dumps(partial, allow_nan=False)


def test_the_lower_triangle_suffices_for_maa_bwt_and_forgetting() -> None:
    lower = [[NAN] * 3, [90.0, NAN, NAN], [85.0, 70.0, NAN], [80.0, 75.0, 60.0]]
    summary = summarize(lower, ["a", "b", "c"])
    full = summarize(MATRIX, ["a", "b", "c"])
    for name in ("Last", "Learned", "BWT", "MAA", "ACC", "Forgetting"):
        assert summary[name] == full[name]
    assert summary["AVG"] is summary["Transfer"] is None
    assert summarize(lower, ["a", "b", "c"], "seen")["AVG"] == pytest.approx(72.5)


def test_the_summary_has_the_promised_keys_and_names_its_divisors() -> None:
    summary = summarize(MATRIX, ["a", "b", "c"])
    assert list(summary) == [*KEYS, "per_task", "definitions"]
    assert list(summary["definitions"]) == KEYS
    assert "divisor 2" in summary["definitions"]["BWT"]
    assert summary["definitions"]["Learned"] == (
        "mean_i R[s_i,i]; tasks learned by the last stage; divisor 3"
    )
    assert "all stages" in summary["definitions"]["AVG"]
    assert summary["per_task"]["c"] == {
        "AVG": 25.0,
        "Last": 60.0,
        "Learned": 60.0,
        "BWT": None,
        "Forgetting": None,
        "Transfer": 4.5,
    }
    assert summary["BWT"] == -2.5
    assert summary["Learned"] == pytest.approx(220 / 3)


def test_joint_training_is_one_stage_of_all_tasks() -> None:
    joint = summarize([[1, 2, 3], [90, 80, 70]], ["a", "b", "c"], "seen", [[0, 1, 2]])
    assert joint["AVG"] == joint["Last"] == joint["MAA"] == joint["ACC"] == 80.0
    assert joint["Learned"] == 80.0
    assert joint["BWT"] is joint["Forgetting"] is joint["Transfer"] is None


def test_a_stage_that_learns_two_tasks_ends_both() -> None:
    pairs = summarize(MATRIX[:3], ["a", "b", "c"], task_of_stage=[[1], [0, 2]])
    assert [pairs["per_task"][task]["Learned"] for task in "abc"] == [85.0, 5.0, 9.0]
    assert pairs["Learned"] == 33.0


def test_zero_shot_has_levels_but_no_changes() -> None:
    summary = summarize([[10, 20]], ["a", "b"])
    assert summary["AVG"] == summary["Last"] == summary["ACC"] == 15.0
    assert summary["BWT"] is summary["MAA"] is summary["Transfer"] is summary["Learned"] is None
    assert "row 0" in summary["definitions"]["AVG"]


def test_a_run_under_way_is_summarized_over_what_it_has_seen() -> None:
    summary = summarize(MATRIX[:3], ["a", "b", "c"], "seen")
    assert summary["BWT"] == -5.0
    assert summary["AVG"] == pytest.approx((87.5 + 70) / 2)
    assert summary["Learned"] == 80.0
    assert summary["per_task"]["c"]["Learned"] is None
    assert summary["per_task"]["c"]["Transfer"] == pytest.approx(4.5)


def test_stages_in_another_order_name_their_tasks() -> None:
    matrix = [[0, 0], [10, 90], [80, 70]]
    same(backward_transfer(matrix, [1, 0]), [NAN, -20.0])
    same(transfer(matrix, [1, 0]), [10.0, NAN])


def test_tensors_are_taken_and_never_changed() -> None:
    matrix = torch.tensor(MATRIX, dtype=torch.float64)
    last(matrix)[0] = 0.0
    average(matrix[:1])[0] = 5.0
    assert matrix[0, 0] == 1.0
    assert matrix[-1, 0] == 80.0


@pytest.mark.parametrize(
    ("matrix", "options", "message"),
    [
        ([1.0, 2.0], {}, "matrix must be"),
        ([[0.0], [1.0], [2.0]], {}, "2 stages but 1 tasks"),
        ([[0.0], [1.0]], {"task_of_stage": [0, 0]}, "2 entries for 1 stages"),
        ([[0.0], [1.0]], {"task_of_stage": [3]}, "names task 3 of 1"),
        ([[0.0], [1.0]], {"avg_scope": "past"}, "avg_scope must be"),
    ],
)
def test_wrong_arguments_are_refused(
    matrix: list[float], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        summarize(matrix, ["a"], **options)  # type: ignore[arg-type]


def test_names_must_match_the_columns() -> None:
    with pytest.raises(ValueError, match="1 task names for 3 columns"):
        summarize(MATRIX, ["a"])


@given(matrices(), st.data())
def test_writing_and_reading_a_matrix_keeps_every_bit(
    tmp_path_factory: pytest.TempPathFactory, matrix: npt.NDArray[np.float64], data: st.DataObject
) -> None:
    holes = data.draw(arrays(np.bool_, matrix.shape))
    matrix = np.where(holes, NAN, matrix / 3)
    path = tmp_path_factory.mktemp("run") / "evaluation_matrix.csv"
    names = [f"task-{i}" for i in range(matrix.shape[1])]
    write_matrix(path, matrix, names)
    read, read_names = read_matrix(path)
    np.testing.assert_array_equal(read, matrix)
    assert read_names == names
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_file_is_plain_csv_with_empty_cells_for_missing(tmp_path: Path) -> None:
    path = tmp_path / "matrix.csv"
    write_matrix(path, [[0.1, NAN], [1 / 3, 50.0]], ["a", "b"])
    assert path.read_text() == "stage,a,b\n0,0.1,\n1,0.3333333333333333,50.0\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected the header"),
        ("stage,a\n", "no row below"),
        ("stage,a\n1,2\n", "line 2: stage '1', expected 0"),
        ("stage,a\n0,2,3\n", "line 2: 3 cells, expected 2"),
        ("stage,a\n0,x\n", "line 2: could not convert"),
        ("stage,a\n0,nan\n", "line 2: a score must be finite"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "matrix.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"matrix.csv.*{message}"):
        read_matrix(path)


def test_a_matrix_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "matrix.csv"
    with pytest.raises(ValueError, match="for 1 tasks"):
        write_matrix(path, MATRIX, ["a"])
    with pytest.raises(ValueError, match="names repeat: a, a"):
        write_matrix(path, [[1.0, 2.0]], ["a", "a"])
    with pytest.raises(ValueError, match="infinite"):
        write_matrix(path, [[math.inf]], ["a"])
    assert not path.exists()
