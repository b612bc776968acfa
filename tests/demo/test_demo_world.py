"""The synthetic world and its tasks."""

from __future__ import annotations

import random

import numpy as np
import pytest
from transformers import AutoTokenizer

from dmole.data.sample import IMAGE_PLACEHOLDER
from dmole.demo.tiny import TINY_PATH
from dmole.demo.world import GENERATORS, GRAPH_TASKS, SPLITS, parse_address, synthetic_samples
from dmole.demo.world.needs import NEED_GENERATORS
from dmole.demo.world.questions import WORDINGS, ask_all
from dmole.demo.world.scenes import (
    FILLS,
    dense_labels,
    filled_mask,
    random_scene,
    shape_scene,
    text_scene,
)
from dmole.demo.world.world import CLASSES, COLOR_NAMES, Thing

ALL = sorted([*GENERATORS, *GRAPH_TASKS])
SINGLE_WORD_TASKS = (
    "count",
    "hollow",
    "paint",
    "read",
    "tally",
    "texture",
    "graph_node",
    "graph_link",
)


@pytest.mark.parametrize("generator", ALL)
def test_the_same_address_gives_the_same_samples(generator: str) -> None:
    first = synthetic_samples(f"synthetic://{generator}/train?size=5&seed=3")
    second = synthetic_samples(f"synthetic://{generator}/train?size=5&seed=3")
    for one, other in zip(first, second, strict=True):
        assert (one.id, one.turns) == (other.id, other.turns)
        np.testing.assert_array_equal(one.images[0].array, other.images[0].array)


def test_a_longer_list_begins_with_the_shorter_one() -> None:
    short = synthetic_samples("synthetic://find/test?size=3")
    long = synthetic_samples("synthetic://find/test?size=9")
    assert [sample.turns for sample in short] == [sample.turns for sample in long[:3]]


@pytest.mark.parametrize("generator", ALL)
def test_splits_and_seeds_share_neither_ids_nor_pictures(generator: str) -> None:
    ids, pictures = [], []
    for split in SPLITS:
        for seed in (0, 1):
            samples = synthetic_samples(f"synthetic://{generator}/{split}?size=20&seed={seed}")
            ids += [sample.id for sample in samples]
            pictures += [sample.images[0].array.tobytes() for sample in samples]
    assert len(set(ids)) == len(ids)
    assert len(set(pictures)) == len(pictures)


def test_training_samples_end_with_the_answer_and_test_samples_with_the_question() -> None:
    (trained,) = synthetic_samples("synthetic://caption/train?size=1")
    (tested,) = synthetic_samples("synthetic://caption/test?size=1")
    assert [turn.role for turn in trained.turns] == ["user", "assistant"]
    assert [turn.role for turn in tested.turns] == ["user"]
    assert not trained.references
    assert tested.references
    assert trained.turns[0].text.count(IMAGE_PLACEHOLDER) == len(trained.images) == 1
    assert trained.images[0].load().size == (64, 64)


@pytest.mark.parametrize("generator", [name for name in ALL if name not in NEED_GENERATORS])
def test_questions_survive_the_tokenizer_and_answers_consist_of_words_of_the_vocabulary(
    generator: str,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY_PATH)
    for sample in synthetic_samples(f"synthetic://{generator}/val?size=60"):
        answer = sample.references[0]
        words = answer.replace(">", "> ").split()
        assert len(tokenizer.tokenize(answer)) == len(words)
        prompt = tokenizer(sample.prompt, add_special_tokens=False).input_ids
        # a location token takes the space before it
        assert tokenizer.decode(prompt).strip() == sample.prompt.replace(" <", "<")
        if generator in SINGLE_WORD_TASKS:
            assert len(words) == 1


def test_no_task_answers_two_ways_to_one_question() -> None:
    answers: dict[tuple[bytes, str], str] = {}
    for generator in ALL:
        for sample in synthetic_samples(f"synthetic://{generator}/val?size=100"):
            key = (sample.images[0].array.tobytes(), sample.prompt)
            assert answers.setdefault(key, sample.references[0]) == sample.references[0]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("synthetic://pain/train?size=1", "unknown generator 'pain'; known are caption, compass"),
        ("synthetic://paint/dev?size=1", "unknown split 'dev'; known are train, val, test"),
        ("synthetic://paint/train?size=1&sede=1", "unknown query key 'sede'; known are size, seed"),
        ("synthetic://paint/train?size=many", "size must be a whole number, got 'many'"),
        ("synthetic://paint/train?size=1&seed=-1", "seed must be a whole number, got '-1'"),
        ("synthetic://paint/train?size=1&size=2", "query key 'size' is given twice"),
        ("synthetic://paint/train?size=0", "size=N with N of at least 1 is needed"),
        ("synthetic://paint/train", "size=N with N of at least 1 is needed"),
        ("file://paint/train?size=1", "is not an address of the form"),
    ],
)
def test_a_bad_address_is_refused_by_name(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_address(uri)


def test_a_scene_of_the_pretraining_has_solid_shapes_only() -> None:
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(100)]
    assert {thing.fill for scene in scenes for thing in scene.things} == {"solid"}


def test_dense_labels_name_color_class_and_edges_of_the_patches_under_a_thing() -> None:
    scene = text_scene(random.Random(1), "number")
    labels = dense_labels(scene).reshape(6, 8, 8)
    for glyph in scene.things:
        left, top, right, bottom = glyph.box
        inside = labels[:, -(-top // 2) : bottom // 2, -(-left // 2) : right // 2]
        expected = np.array([glyph.color + 1, glyph.label + 1, *glyph.box])
        assert inside.size
        assert (inside == expected[:, None, None]).all()
    ground = labels[:, labels[0] == 0]
    assert (ground[1] == 0).all()
    assert (ground[2:] == -100).all()


def test_shapes_of_a_scene_neither_overlap_nor_look_the_same() -> None:
    rng = random.Random(2)
    for _ in range(200):
        scene = shape_scene(rng)
        covered = np.zeros((16, 16), int)
        for thing in scene.things:
            left, top, right, bottom = thing.box
            covered[top:bottom, left:right] += 1
        assert covered.max() == 1
        assert len({thing.name for thing in scene.things}) == len(scene.things)


def test_a_thing_is_painted_in_its_color_where_its_box_says() -> None:
    rng = random.Random(3)
    for _ in range(50):
        scene = shape_scene(rng, 1, dark=False)
        (thing,) = scene.things
        column, row = (int(4 * middle) for middle in thing.center)
        ground = scene.pixels[0, 0] if thing.left > 1 or thing.top > 1 else scene.pixels[-1, -1]
        assert np.abs(scene.pixels[row, column].astype(int) - ground).max() > 15


def test_questions_cover_every_kind_and_answers_follow_from_the_scene() -> None:
    rng = random.Random(4)
    seen = set()
    for _ in range(100):
        scene = random_scene(rng)
        for question in ask_all(rng, scene):
            seen.add(question.kind)
            if question.kind in ("color", "shape"):
                names = COLOR_NAMES if question.kind == "color" else CLASSES
                assert question.answer in names
                assert question.answer in question.things[0].name
    assert seen == set(WORDINGS)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("size", [16, 20])
def test_fills_differ_from_each_other_on_every_shape(fill: str, size: int) -> None:
    for label in range(5):
        others = [filled_mask(label, size, other) for other in FILLS if other != fill]
        mask = filled_mask(label, size, fill)
        assert all(np.abs(mask - other).sum() > 3 for other in others)
        assert 0 <= mask.min() <= mask.max() <= 1


def test_an_unknown_fill_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown fill 'plaid'; known are solid, hollow"):
        filled_mask(0, 16, "plaid")


def test_a_thing_knows_its_box_center_and_name() -> None:
    thing = Thing(label=3, color=0, left=2, top=4, width=3, height=5)
    assert thing.box == (2, 4, 5, 9)
    assert thing.center == (3.5, 6.5)
    assert thing.name == "red star"
