from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from dmole.report.comparison_figures import comparison_figure, forgetting_curves
from dmole.report.labels import LONGEST, plain, spread
from dmole.report.method_figures import TaskHistory, accuracy_figure, task_panels
from dmole.report.style import figure_to_array, line_style

NAN = math.nan
MANY = [f"method_{number}" for number in range(25)]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Return the pairs of words within axes that cover each other."""
    figure_to_array(figure)
    boxes = [
        (text.get_text(), Text.get_window_extent(text))  # an annotation's holds its line too
        for axes in figure.axes
        for text in axes.texts
    ]
    return [(a, b) for (a, one), (b, other) in combinations(boxes, 2) if one.overlaps(other)]


def test_lines_of_many_methods_have_labels_apart() -> None:
    curves = {name: [80.0, 60.0 + place / 10] for place, name in enumerate(MANY)}
    figure = forgetting_curves(curves, "Curves")
    assert [text.split()[-1] for text in words(figure)] == MANY
    assert overlapping(figure) == []
    assert figure.axes[0].get_legend() is None


def test_a_single_stage_beside_longer_ones_is_a_line_across() -> None:
    figure = forgetting_curves({"ours": [80.0, 70.0, 60.0], "joint": [90.0]}, "Curves")
    ours, joint = figure.axes[0].lines
    assert ours.get_xydata().tolist() == [[1, 80], [2, 70], [3, 60]]
    assert joint.get_xydata().tolist() == [[1, 90], [2, 90], [3, 90]]
    assert joint.get_linestyle() == ":"


def test_many_methods_are_rows_in_their_order() -> None:
    bars = {name: {"Last": (50.0, 1.0), "BWT": (-5.0, NAN)} for name in MANY}
    figure = comparison_figure({MANY[0]: [1.0, 2.0]}, bars)
    right = figure.axes[1]
    assert [label.get_text() for label in right.get_yticklabels()] == MANY
    assert right.yaxis.get_inverted()
    assert overlapping(figure) == []


def test_the_panels_show_each_task_before_and_after_its_stage() -> None:
    scores = np.array([[1.0, 2.0], [90.0, 3.0], [80.0, 70.0]])
    history = TaskHistory(scores, np.array([1.0, 2.0]), np.array([90.0, 75.0]))
    still = TaskHistory(scores[:1], np.array([1.0, 1.0]), np.array([]))
    figure = task_panels(
        {"ours": history, "zero-shot": still, "third": history}, ["color", "count"]
    )
    axes = figure.axes[0]
    assert axes.get_title(loc="left") == "ours"
    lines = [line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata())]
    assert lines == [
        [[0, 1], [1, 90]],
        [[1, 90], [2, 80]],
        [[1, 90]],
        [[0, 2], [1, 3], [2, 70]],
        [[2, 70]],
        [[2, 70]],
        [[1, 90], [2, 75]],
    ]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["color", "count", "mean of seen tasks"]
    assert [axes.get_visible() for axes in figure.axes] == [True, True, True, False]
    with pytest.raises(ValueError, match="no methods"):
        task_panels({}, [])


def test_accuracy_is_drawn_by_parameters_with_labels_apart() -> None:
    points = {
        name: ((1e5 * (1 + place % 3), 0.0), (60.0 + place / 3, 0.5))
        for place, name in enumerate(MANY)
    }
    points["nothing"] = ((NAN, NAN), (15.0, NAN))
    figure = accuracy_figure(points, {"method_3"})
    assert sorted(words(figure)) == sorted([*MANY, "nothing: trains nothing"])
    assert overlapping(figure) == []
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [place for place, m in enumerate(marks) if m.get_markerfacecolor() == "white"] == [3]
    with pytest.raises(ValueError, match="no method with trainable parameters"):
        accuracy_figure({"nothing": points["nothing"]}, set())


@pytest.mark.parametrize(("top", "scale"), [(4e5, "linear"), (9e5, "log")])
def test_parameters_far_apart_are_on_a_log_scale(top: float, scale: str) -> None:
    points = {"a": ((1e5, 2e5), (60.0, NAN)), "b": ((top, NAN), (70.0, 1.0))}
    assert accuracy_figure(points, set()).axes[0].get_xscale() == scale


def test_names_are_shown_as_they_are() -> None:
    assert plain("a$b$") == r"a\$b\$"
    assert plain("_a\nb") == " _a b"
    assert len(plain("x" * 99)) <= LONGEST
    figure = forgetting_curves({"$\\frac$": [1.0, 2.0], "_b": [3.0, 2.0]}, "Curves")
    figure_to_array(figure)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == [r"2.0  \$\frac\$", "2.0   _b"]


def test_label_positions_are_apart_and_near_their_targets() -> None:
    assert spread([5.0, 1.0, 1.0], 1.0, 0.0, 9.0) == [5.0, 0.5, 1.5]
    assert spread([0.0, 0.0, 0.0], 1.0, 0.0, 9.0) == [0.0, 1.0, 2.0]
    assert spread([9.0, 9.0], 1.0, 0.0, 9.0) == [8.0, 9.0]
    assert spread([2.0] * 4, 1.0, 0.0, 1.0) == [0.0, 1.0, 2.0, 3.0]


def test_forty_nine_lines_look_different() -> None:
    assert len({line_style(position) for position in range(49)}) == 49
