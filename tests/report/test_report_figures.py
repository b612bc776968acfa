from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dmole.report.figures import (
    acceptance_figure,
    activation_heatmap,
    allocation_heatmap,
    comparison_bars,
    comparison_figure,
    figure_to_array,
    forgetting_curves,
    matrix_heatmap,
    save_figure,
)
from dmole.report.heatmaps import HIGHEST, MOST_MIXED, WIDEST
from dmole.report.style import preview

NAN = math.nan
MATRIX = [[1.0, 2.0], [90.0, NAN], [80.0, 133.2]]
ROWS = [
    {"expert": name, "modality": unit.split(".")[0], "unit": unit, "score": score, "selected": one}
    for name, unit, score, one in [
        ("a", "vision.0", "0.5", "1"),
        ("a", "language.0", "", "0"),
        ("b", "vision.0", 2.0, 0),
        ("b", "language.0", 4.0, True),
    ]
]
CURVES = {"ours": [[80.0, 79.0], [82.0, 80.0]], "theirs": [75.0, 50.0]}
BARS = {"ours": {"Last": (79.5, 0.5), "BWT": (-1.0, NAN)}, "theirs": {"Last": (NAN, NAN)}}
DRAWINGS: dict[str, Callable[[], Figure]] = {
    "matrix": lambda: matrix_heatmap(MATRIX, ["a", "b"], "Scores"),
    "joint matrix": lambda: matrix_heatmap(MATRIX[:2], ["a", "b"], "Scores", [[0, 1]]),
    "unfinished matrix": lambda: matrix_heatmap([[NAN, NAN]], ["a", "b"], "Scores"),
    "allocation": lambda: allocation_heatmap(ROWS, "Experts"),
    "activation": lambda: activation_heatmap({"a": {"a+b": 3, "base": 1}, "b": {}}, "Routing"),
    "acceptance": lambda: acceptance_figure({"a": ([0.1, 1.2], [3.0]), "b": ([0.5], [])}, "Losses"),
    "curves": lambda: forgetting_curves(CURVES, "Curves"),
    "bars": lambda: comparison_bars(BARS, "Bars"),
    "comparison": lambda: comparison_figure(CURVES, BARS),
    "comparison without stages": lambda: comparison_figure({}, BARS),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_figure_draws_something_without_pyplot(name: str) -> None:
    before = "matplotlib.pyplot" in sys.modules
    pixels = figure_to_array(DRAWINGS[name]())
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.max() == 255
    assert pixels.min() < 100
    assert ("matplotlib.pyplot" in sys.modules) == before


def words(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_matrix_shows_its_numbers_and_marks_missing_ones() -> None:
    figure = DRAWINGS["matrix"]()
    assert words(figure) == ["1.0", "2.0", "90.0", "-", "80.0", "133.2"]
    assert figure.axes[0].get_title(loc="left") == "Scores"
    assert len(figure.axes[0].patches) == 2


def test_joint_training_frames_all_tasks_of_its_stage() -> None:
    corners = [patch.get_xy() for patch in DRAWINGS["joint matrix"]().axes[0].patches]
    assert [round(x) for x, _ in corners] == [0, 1]
    assert {round(y) for _, y in corners} == {1}


def test_the_allocation_marks_exactly_the_experts() -> None:
    axes = DRAWINGS["allocation"]().axes[0]
    marks = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert marks == [[[0.0, 0.0], [1.0, 1.0]]]


def test_long_names_of_layers_leave_room_for_a_single_task(tmp_path: Path) -> None:
    names = [f"model.vision_tower.encoder.layers.{i}.self_attn.out_proj" for i in range(4)]
    rows = [{"expert": "a", "modality": "v", "unit": n, "score": 1, "selected": 1} for n in names]
    figure = allocation_heatmap(rows, "Experts")
    save_figure(figure, tmp_path / "a.png")  # warns where there is no room
    assert figure.axes[0].get_window_extent().width > 50


def test_the_routing_is_in_percent_of_each_task() -> None:
    figure = DRAWINGS["activation"]()
    assert words(figure) == ["75", "25", "-", "-"]
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["a + b", "base"]


def test_the_share_that_each_autoencoder_accepts_is_written() -> None:
    assert words(DRAWINGS["acceptance"]()) == ["50% / 0%", "100% / -"]


@pytest.mark.parametrize("lowest", [0.5, 1e-4])
def test_the_labels_of_losses_do_not_overlap(lowest: float) -> None:
    figure = acceptance_figure({"a": ([lowest, 1.2], [2.0, 900.0 * lowest])}, "Losses")
    figure.draw_without_rendering()
    texts = [label for label in figure.axes[0].get_xticklabels() if label.get_text()]
    low, high = figure.axes[0].get_window_extent().intervalx
    boxes = sorted(text.get_window_extent().intervalx.tolist() for text in texts)
    shown = [box for box in boxes if low <= sum(box) / 2 <= high]
    assert len(shown) > 2
    assert all(left[1] < right[0] for left, right in itertools.pairwise(shown))


def test_figures_of_hundreds_of_tasks_have_a_largest_size() -> None:
    names = [f"task{index:03}" for index in range(300)]
    rows = [ROWS[0] | {"expert": name, "unit": f"vision.{i}"} for name in names for i in (0, 1)]
    routed = {name: {name: 5, f"{name}+{names[0]}": 2, "base": 1} for name in names}
    drawn = [
        matrix_heatmap(np.full((301, 300), 50.0), names, "Scores"),
        allocation_heatmap(rows, "Experts"),
        activation_heatmap(routed, "Routing"),
        acceptance_figure({name: ([0.5], [2.0]) for name in names}, "Losses"),
    ]
    for figure in drawn:
        width, height = figure.get_size_inches()
        assert width <= WIDEST
        assert height <= HIGHEST
        assert len(figure.axes[0].get_xticks()) < 110
    shares = np.asarray(drawn[2].axes[0].images[0].get_array())
    assert shares.shape == (300, 300 + MOST_MIXED + 2)  # the rare sets, then base
    np.testing.assert_allclose(shares.sum(axis=1), 100.0)
    assert shares[299, -2] == 25.0


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: matrix_heatmap(MATRIX, ["a"], ""), "for 1 tasks"),
        (lambda: allocation_heatmap([], ""), "no allocation"),
        (lambda: activation_heatmap({}, ""), "no routing"),
        (lambda: acceptance_figure({}, ""), "no losses to draw: no expert"),
        (lambda: forgetting_curves({}, ""), "no curves"),
        (lambda: comparison_bars({}, ""), "no bars"),
    ],
)
def test_nothing_to_draw_is_said(draw: Callable[[], Figure], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw()


def test_a_figure_is_saved_as_a_whole_png(tmp_path: Path) -> None:
    path = tmp_path / "figures" / "bars.png"
    save_figure(DRAWINGS["bars"](), path)
    with Image.open(path) as image:
        assert image.format == "PNG"
    assert [file.name for file in path.parent.iterdir()] == ["bars.png"]
    with pytest.raises(ValueError, match=r"saved as \.png"):
        save_figure(DRAWINGS["bars"](), tmp_path / "bars.pdf")


@pytest.mark.parametrize("name", ["matrix", "allocation", "acceptance", "comparison"])
def test_an_svg_holds_texts_of_one_font_whatever_the_settings(name: str, tmp_path: Path) -> None:
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    save_figure(DRAWINGS[name](), first)
    with matplotlib.rc_context({"font.family": "serif", "svg.fonttype": "path"}):
        figure = DRAWINGS[name]()
    save_figure(figure, second)
    assert first.read_bytes() == second.read_bytes()
    styles = {text.get("style", "") for text in ElementTree.parse(first).iter() if text.text}
    # matplotlib 3.8 writes one property, as in "font: 9px 'DejaVu Sans'"
    pattern = r"font(?:-family|: (?:bold )?[\d.]+px):? ([^;]+)"
    families = {found for style in styles for found in re.findall(pattern, style)}
    assert len(families) == 1
    assert "DejaVu Sans" in families.pop()


def test_a_preview_is_a_small_picture_of_the_whole_figure() -> None:
    large = figure_to_array(DRAWINGS["matrix"]())
    png, (width, height) = preview(DRAWINGS["matrix"]())
    assert len(png) < 10_000
    assert height / width == pytest.approx(large.shape[0] / large.shape[1], abs=0.02)


def test_a_long_title_gets_lines() -> None:
    figure = matrix_heatmap(MATRIX, ["a", "b"], "score after each stage, a column that fades")
    assert "\n" in figure.axes[0].get_title(loc="left")
