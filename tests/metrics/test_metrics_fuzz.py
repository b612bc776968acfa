"""Whatever a model answers, a score is a finite number from 0 to 100, and soon there."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dmole.benchmarks.registry import build_metric
from dmole.metrics.boxes import BoxReader
from dmole.metrics.task_metrics import CIDEr, IoU
from dmole.metrics.treebank import tokenize_python
from dmole.metrics.vqa import normalize_answer

FUZZ = settings(derandomize=True, max_examples=60, deadline=None, database=None)

NUMBER = st.one_of(
    st.floats().map(repr),
    st.integers().map(str),
    st.sampled_from(["1e999", "-1e999", "1e308", "-1e308", "nan", "inf", "9" * 400, "٣", "1_0"]),
)
BOX = st.lists(NUMBER, min_size=3, max_size=5).map(lambda numbers: f"[{', '.join(numbers)}]")
TOKENS = st.lists(st.tuples(st.sampled_from(["x", "y", "loc"]), NUMBER), max_size=5).map(
    lambda pairs: "".join(f"<{axis}{number}>" for axis, number in pairs)
)
ANSWER = st.one_of(
    st.text(max_size=40),
    st.text(st.characters(), max_size=40),  # halves of characters too
    BOX,
    TOKENS,
    st.tuples(BOX, st.sampled_from([" size=0x0", " size=1x1", "%", " size=999x1"])).map("".join),
)
REFERENCE = "[0.1, 0.2, 0.5, 0.6]"


def is_score(value: float) -> bool:
    return math.isfinite(value) and 0.0 <= value <= 100.0


@FUZZ
@given(st.lists(ANSWER, min_size=1, max_size=3), st.lists(ANSWER, min_size=1, max_size=4))
def test_answers_compared_as_texts(answers: list[str], references: list[str]) -> None:
    for name in ("exact_match", "vqa_soft", "contains"):
        score = build_metric(name).score(answers, [references] * len(answers))
        assert all(map(is_score, [score.value, *score.per_sample, *score.details.values()]))


@FUZZ
@given(
    ANSWER,
    st.sampled_from(["auto", "unit", "percent", "permille", "tokens"]),
    st.sampled_from(["bracket", "strict", "numbers"]),
    st.sampled_from(["xyxy", "yxyx"]),
)
@example("[-1e308, -1e308, 1e308, 1e308]", "unit", "bracket", "xyxy")
@example("[nan, nan, nan, nan]", "unit", "strict", "xyxy")
@example("[inf, -inf, inf, inf]", "auto", "strict", "xyxy")
@example(f"<x{'9' * 5000}><y1><x2><y3>", "tokens", "bracket", "xyxy")
def test_boxes(answer: str, box_format: str, parser: str, order: str) -> None:
    metric = IoU(box_format=box_format, parser=parser, order=order)
    score = metric.score([answer, REFERENCE], [[REFERENCE], [REFERENCE]])
    assert all(map(is_score, [score.value, *score.per_sample, *score.details.values()]))


@FUZZ
@given(ANSWER, st.tuples(st.integers(0, 5), st.integers(0, 5)))
def test_boxes_in_pixels_of_any_size(answer: str, size: tuple[int, int]) -> None:
    reference = f"[0, 0, 1, 1] size={size[0]}x{size[1]}"
    metric = IoU(box_format="pixels", reference_format="pixels", parser="numbers")
    if 0 in size:
        with pytest.raises(ValueError, match="size"):
            metric.score([answer], [[reference]])
        return
    score = metric.score([answer], [[reference]])
    assert all(map(is_score, [score.value, *score.details.values()]))


@FUZZ
@given(st.lists(ANSWER, min_size=1, max_size=4))
def test_captions(answers: list[str]) -> None:
    score = CIDEr("python").score(answers, [["a red dog", "a dog"]] * len(answers))
    assert math.isfinite(score.value)
    assert score.value >= 0  # CIDEr x 100 may exceed 100
    assert all(math.isfinite(value) and value >= 0 for value in score.per_sample)


LONG = 40_000
PIECES = [
    "a", "1", "9", " ", ".", ",", "[", "(", "[1,", "1,", "1 ", "-", "'", "a.", "a-", "a'", "<x1>",
    "<loc", "size=1x", "1e", "%", "\n", "\t", "1 , ", "[1 , 2 , 3 ", "; ", "n't", "\u2019", "é",
]  # fmt: skip


@pytest.mark.parametrize("piece", PIECES, ids=repr)
def test_long_answers_are_read_in_no_time(piece: str) -> None:
    text = piece * (LONG // len(piece))
    started = time.process_time()
    normalize_answer(text)
    tokenize_python(text)
    for parser in ("bracket", "strict", "numbers"):
        BoxReader(parser=parser).read(text)
    BoxReader(box_format="tokens").read(text)
    build_metric("iou").score([text], [[REFERENCE]])
    assert time.process_time() - started < 2.0  # a quadratic one takes minutes
