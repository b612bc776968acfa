from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmole.metrics.boxes import Box, BoxReader, intersection_over_union, read_size

side = st.floats(0, 1)
boxes = st.tuples(side, side, side, side)
BOX = (0.1, 0.2, 0.5, 0.8)


@pytest.mark.parametrize(
    ("text", "box_format"),
    [
        ("[0.1, 0.2, 0.5, 0.8]", "auto"),
        ("It is at [0.1,0.2,0.5,0.8].", "unit"),
        ("(0.1; 0.2; 0.5; 0.8)", "auto"),
        ("[10%, 20%, 50%, 80%]", "auto"),
        ("[10, 20, 50, 80]", "percent"),
        ("[100, 200, 500, 800]", "auto"),
        ("[100, 200, 500, 800]", "permille"),
        ("[[1e2 2e2 5e2 8e2]]", "auto"),
        ("[64, 96, 320, 384]", "pixels"),
        ("<x100><y200><x500><y800>", "auto"),
        ("<y200><x100><y800><x500>", "auto"),
        ("<loc0100><loc0200><loc0500><loc0800>", "tokens"),
        ("(100,200),(500,800)", "auto"),
        ("(100, 200) and (500, 800)", "permille"),
        ("<|box_start|>(100,200),(500,800)<|box_end|>", "auto"),
        ("<|object_ref_start|>dog (2)<|object_ref_end|><box>(100,200),(500,800)</box>", "auto"),
        ("<box>100, 200, 500, 800</box>", "auto"),
        ("<box>[[100, 200, 500, 800]]</box>", "auto"),
        ("[[0.1,0.2],[0.5,0.8]]", "auto"),
        ("[[[10%,20%],[50%,80%]]]", "auto"),
        ("([64, 96], [320, 384])", "pixels"),
        ('{"bbox_2d": [100, 200, 500, 800], "label": "dog"}', "auto"),
    ],
)
def test_a_box_is_read_in_every_unit(text: str, box_format: str) -> None:
    reader = BoxReader(box_format=box_format)  # type: ignore[arg-type]
    assert reader.read(text, (640, 480)) == pytest.approx(BOX)


def test_the_order_of_unnamed_coordinates_is_configured() -> None:
    reader = BoxReader(order="yxyx")
    assert reader.read("[0.2, 0.1, 0.8, 0.5]") == BOX
    assert reader.read("<loc200><loc100><loc800><loc500>") == pytest.approx(BOX)


def test_tokens_are_counted_in_bins() -> None:
    assert BoxReader(bins=16).read("<x4><y8><x12><y16>") == (0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize(
    "text",
    [
        *("", "left", "[0.1, 0.2, 0.5]", "[0.1, 0.2, 0.5, left]", "<x1><x2><x3><y4>", "<x1><y2>"),
        *("(1,2)", "(1,2),(3)", "(1,2) or so (3,4)"),
    ],
)
def test_texts_without_a_box_give_none(text: str) -> None:
    assert BoxReader().read(text) is None


def test_the_parsers_differ_in_what_they_accept() -> None:
    loose, strict = BoxReader(parser="numbers"), BoxReader(parser="strict")
    assert loose.read("0.1, 0.2, 0.5, 0.8") == BOX
    assert BoxReader().read("0.1, 0.2, 0.5, 0.8") is None
    assert strict.read("[0.1, 0.2, 0.5, 0.8]") == BOX
    assert BoxReader().read("[0.1, 0.2, 0.5, 0.8,]") == BOX
    assert strict.read("[0.1, 0.2, 0.5, 0.8,]") is None


def test_pixels_need_a_size() -> None:
    with pytest.raises(ValueError, match="no image size is known"):
        BoxReader(box_format="pixels").read("[1, 2, 3, 4]")
    assert BoxReader(box_format="pixels", image_size=(10, 10)).read("[1, 2, 5, 8]") == BOX
    assert read_size("[1, 2, 3, 4]") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box_format": "cm"}, "box_format must be one of auto, unit.*got 'cm'"),
        ({"order": "xywh"}, "order must be one of xyxy, yxyx, got 'xywh'"),
        ({"parser": "any"}, "parser must be one of"),
        ({"bins": 0}, "bins must be positive, got 0"),
    ],
)
def test_unknown_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BoxReader(**options)  # type: ignore[arg-type]


@given(boxes, boxes)
def test_overlap_is_symmetric_and_between_zero_and_one(first: Box, second: Box) -> None:
    overlap = intersection_over_union(first, second)
    assert overlap == intersection_over_union(second, first)
    assert 0.0 <= overlap <= 1.0 + 1e-9


def test_degenerate_boxes_overlap_nothing() -> None:
    assert intersection_over_union((1, 1, 0, 0), (0, 0, 1, 1)) == 0.0
    assert intersection_over_union((0, 0, 0, 1), (0, 0, 0, 1)) == 0.0
