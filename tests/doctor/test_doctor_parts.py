from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmole.benchmarks.sizes import published_sizes, size_mismatch
from dmole.data.sample import FileImage
from dmole.doctor.answers import AnswerCounter
from dmole.doctor.compare import find_shared
from dmole.doctor.findings import LEVELS, Finding, Findings
from dmole.doctor.images import look_at
from dmole.doctor.pool import run_jobs


def test_few_answers_are_counted_exactly() -> None:
    counter = AnswerCounter(capacity=2)
    for answer in ("a", " a", "b", "c", "d"):
        counter.add((answer,))
    assert counter.most_common(1) == [("a", 2)]
    assert (counter.total, counter.distinct, counter.exact) == (5, 4, True)


def test_of_several_accepted_answers_the_most_frequent_counts() -> None:
    counter = AnswerCounter()
    counter.add(("x", "y", "y"))
    assert counter.most_common(2) == [("y", 1)]


@pytest.mark.parametrize("order", ["first", "last", "mixed"])
def test_frequent_answers_survive_many_rare_ones(order: str) -> None:
    frequent, rare = ["yes"] * 300 + ["no"] * 200, [f"{i}" for i in range(2000)]
    answers = {"first": frequent + rare, "last": rare + frequent, "mixed": frequent + rare}[order]
    if order == "mixed":
        random.Random(0).shuffle(answers)
    counter = AnswerCounter(capacity=20)
    for answer in answers:
        counter.add((answer,))
    assert not counter.exact
    assert counter.distinct <= 40
    (first, yes), (second, no) = counter.most_common(2)
    assert (first, second) == ("yes", "no")
    least = len(answers) / 20
    assert 300 - least <= yes <= 300
    assert 200 - least <= no <= 200


def test_findings_keep_the_first_items_of_all_passes() -> None:
    ours, theirs = Findings(2), Findings(2)
    for findings, items in ((ours, (1, 5, 9)), (theirs, (0, 3))):
        for item in items:
            findings.add(Finding("malformed", "m", item=item))
    ours.merge(theirs)
    assert [finding.item for finding in ours] == [0, 1]
    assert ours.counts == {"malformed": 5}


def test_errors_come_before_warnings_and_these_before_notes_in_the_order_of_kinds() -> None:
    levels = list(LEVELS.values())
    assert levels == sorted(levels, key=["error", "warning", "note"].index)


def test_shared_items_are_named_once_with_the_first_partner() -> None:
    def numbers(*values: int) -> np.ndarray:
        return np.array(values, dtype=np.uint64)

    shared = find_shared(
        numbers(9, 7, 9), numbers(2, 1, 0), numbers(8, 9, 7, 9), numbers(4, 5, 5, 6)
    )
    assert shared.items.tolist() == [5, 6]
    assert shared.partners.tolist() == [0, 0]
    assert shared.without(numbers(5)).items.tolist() == [6]


def test_a_picture_is_identified_by_its_pixels_and_shape(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "b.bmp")
    Image.fromarray(pixels.reshape(2, 8, 3)).save(tmp_path / "c.png")
    hashes = [look_at(FileImage(tmp_path / name)).hash for name in ("a.png", "b.bmp", "c.png")]
    assert hashes[0] == hashes[1] != hashes[2]


def test_sizes_fit_if_those_of_one_benchmark_do() -> None:
    published = published_sizes("flickr30K")
    assert size_mismatch({"train": 145000, "test": 7}, published) == {}
    assert size_mismatch({"train": 40000, "test": 3000}, published) == {}
    assert size_mismatch({"train": 1, "test": 2}, published) == {
        "train": "40000 (ucit/Flickr30k) or 145000 (cmit/Flickr30k)",
        "test": "3000 (ucit/Flickr30k)",
    }
    assert published_sizes("mine") == {}
    assert "test" not in published_sizes("TextCaps")["cmit/TextCaps"]
    assert published_sizes("TextCaps", by_image=True)["cmit/TextCaps"]["test"] == 3166
    assert published_sizes("mine", "coin/GQA") == {"coin/GQA": {"test": 12578}}
    assert published_sizes("mine", "coin/ImageNet") == {}  # without a published size
    assert size_mismatch({"train": 1}, {}) == {}


def die(tick: object) -> None:
    import os

    os._exit(1)


def double(tick: object) -> int:
    if callable(tick):
        tick(3)
    return 2


def test_a_process_that_dies_is_said_in_one_line() -> None:
    with pytest.raises(OSError, match="use fewer --processes"):
        run_jobs([die], 1)


@pytest.mark.parametrize("processes", [0, 2])
def test_progress_counts_the_items(processes: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_jobs([double, double], processes, progress=True) == [2, 2]
    assert "items" in capsys.readouterr().err
