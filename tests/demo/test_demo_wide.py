"""The wide world: grounds, positions, and questions about its scenes."""

from __future__ import annotations

import random

import numpy as np
import pytest

from dmole.demo.world.masks import shape_mask
from dmole.demo.world.scenes import dense_labels
from dmole.demo.world.wide import WIDE_SHAPES, wide_scene, wide_shapes, wide_text
from dmole.demo.world.wide_questions import WIDE_WORDINGS, ask_wide
from dmole.demo.world.world import (
    ALL_COLOR_NAMES,
    ALL_COLORS,
    CELL,
    CLASSES,
    CONTRAST,
    GROUND_JITTER,
    MORE_SHAPES,
    SIZE,
    Scene,
)


def _drawn(scene: Scene) -> np.ndarray:
    """Return where the picture is not ground, the color of most pixels, ``(64, 64)``."""
    ground = np.median(scene.pixels.reshape(-1, 3), axis=0)
    drawn: np.ndarray = (scene.pixels != ground).any(-1)
    return drawn


@pytest.mark.parametrize("kind", ["shapes", "text"])
def test_a_thing_lies_in_its_drawn_box_at_any_pixel(kind: str) -> None:
    rng = random.Random(0)
    lefts = set()
    for _ in range(60):
        scene = wide_shapes(rng, 1, sides=(12, 16)) if kind == "shapes" else wide_text(rng)
        rows, columns = np.nonzero(_drawn(scene))
        boxes = np.array([thing.drawn_box for thing in scene.things]) * CELL
        low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
        assert (low <= (columns.min(), rows.min())).all()
        assert ((columns.max(), rows.max()) < high).all()
        assert (np.abs((columns.min(), rows.min()) - low) <= 8).all()
        assert low.min() >= 0
        assert high.max() <= SIZE
        lefts.add(int(low[0]) % CELL)
    assert lefts == {0, 1, 2, 3}


def test_labels_round_the_drawn_box_to_the_lattice() -> None:
    rng = random.Random(1)
    for _ in range(200):
        scene = wide_shapes(rng)
        for thing in scene.things:
            assert thing.box == tuple(int(edge + 0.5) for edge in thing.drawn_box)
        labels = dense_labels(scene).reshape(6, 8, 8)
        for thing in scene.things:
            column, row = (int((low + high) / 4) for low, high in zip(
                thing.drawn_box[:2], thing.drawn_box[2:], strict=True
            ))  # fmt: skip
            patch = labels[:, row, column]
            assert patch.tolist() == [thing.color + 1, thing.label + 1, *thing.box]


def test_grounds_are_light_dark_and_between_and_every_color_contrasts() -> None:
    rng = random.Random(2)
    lights = []
    for _ in range(300):
        scene = wide_scene(rng)
        ground = np.median(scene.pixels.reshape(-1, 3), axis=0)
        lights.append(ground.mean())
        for thing in scene.things:
            color = ALL_COLORS[thing.color_name]
            assert np.abs(color - ground).sum() >= CONTRAST - 3 * GROUND_JITTER
    shares = np.histogram(lights, [0, 70, 190, 256])[0] / len(lights)
    np.testing.assert_allclose(shares, [0.4, 0.2, 0.4], atol=0.08)


def test_shapes_neither_overlap_nor_look_the_same() -> None:
    rng = random.Random(3)
    for _ in range(200):
        scene = wide_shapes(rng)
        covered = np.zeros((SIZE, SIZE), int)
        for thing in scene.things:
            left, top, right, bottom = (int(edge * CELL) for edge in thing.drawn_box)
            covered[top:bottom, left:right] += 1
        assert covered.max() == 1
        assert len({thing.name for thing in scene.things}) == len(scene.things)


def test_new_shapes_differ_from_all_others() -> None:
    masks = [shape_mask(label, 16) for label in [*range(5), *range(len(CLASSES), len(CLASSES) + 3)]]
    for index, mask in enumerate(masks):
        assert 0 <= mask.min() <= mask.max() <= 1
        for other in masks[:index]:
            assert np.abs(mask - other).sum() > 20
    assert WIDE_SHAPES[-3:] == MORE_SHAPES


def test_questions_cover_every_kind_and_answers_follow_from_the_scene() -> None:
    rng = random.Random(4)
    seen = set()
    for _ in range(400):
        scene = wide_scene(rng)
        for question in ask_wide(rng, scene):
            seen.add(question.kind)
            (thing, *_) = question.things or (None,)
            if question.kind == "fill":
                assert question.answer == thing.fill
            elif question.kind == "size":
                assert (question.answer == "large") == (thing.width * CELL > 16)
            elif question.kind == "largest":
                others = [other.width for other in scene.things if other != thing]
                assert question.answer == f"a {thing.name}"
                assert thing.width > max(others)
            elif question.kind == "count_color":
                (color,) = {*question.text.split()} & {*ALL_COLOR_NAMES}
                number = sum(other.color_name == color for other in scene.things)
                assert question.answer == ("zero", "one", "two", "three", "four")[number]
            elif question.kind in ("only_shape", "only_color"):
                assert len(scene.things) == 1
    assert seen == set(WIDE_WORDINGS)
