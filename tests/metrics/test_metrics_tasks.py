from __future__ import annotations

import copy
import pickle
import shutil
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmole.benchmarks.registry import build_metric
from dmole.metrics import CIDEr, Contains, ExactMatch, IoU, TaskMetric, VQASoft
from dmole.metrics.captions import cider, score_captions
from dmole.metrics.tokenizers import resolve_tokenizer, tokenize_ptb
from dmole.metrics.treebank import tokenize_python
from dmole.metrics.vqa import CONTRACTIONS, normalize_answer, soft_accuracy

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java on the path")
NAMES = ["cider", "contains", "exact_match", "iou", "vqa_soft"]
ANSWERS = ["a red ball on [0.1, 0.1, 0.5, 0.5]", "a blue dog at [0.2, 0.2, 0.6, 0.6]"]


@pytest.fixture(params=NAMES)
def metric(request: pytest.FixtureRequest) -> TaskMetric:
    return CIDEr("python") if request.param == "cider" else build_metric(request.param)


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"unknown metric 'bleu'.*cider, contains, exact_match"):
        build_metric("bleu")


def test_an_instance_is_passed_through() -> None:
    metric = Contains()
    assert build_metric(metric) is metric


def test_every_name_scores_perfect_answers_fully(metric: TaskMetric) -> None:
    score = metric.score(ANSWERS, [[answer] for answer in ANSWERS])
    full = 1000.0 if isinstance(metric, CIDEr) else 100.0
    assert score.value == pytest.approx(full)
    assert score.per_sample == pytest.approx([full, full])


def test_every_metric_refuses_different_lengths_empty_sets_and_bare_strings(
    metric: TaskMetric,
) -> None:
    with pytest.raises(ValueError, match="2 predictions but 1 reference lists"):
        metric.score(ANSWERS, [["a"]])
    with pytest.raises(ValueError, match="no predictions"):
        metric.score([], [])
    with pytest.raises(ValueError, match=r"references\[1\] is a string"):
        metric.score(ANSWERS, [["a"], "b"])
    with pytest.raises(ValueError, match=r"references\[0\] is empty"):
        metric.score(ANSWERS, [[], ["b"]])


def test_batches_and_the_whole_set_give_the_same_score(metric: TaskMetric) -> None:
    references = [[answer] for answer in reversed(ANSWERS)]
    for answer, accepted in zip(ANSWERS, references, strict=True):
        metric.update([answer], [accepted])
    assert metric.compute().item() == pytest.approx(metric.score(ANSWERS, references).value)


def test_state_survives_pickling_and_copying(metric: TaskMetric) -> None:
    metric.update(ANSWERS, [[answer] for answer in ANSWERS])
    expected = metric.compute()
    assert pickle.loads(pickle.dumps(metric)).compute() == expected
    assert copy.deepcopy(metric).compute() == expected


def test_gathered_state_of_two_ranks_scores_like_one(metric: TaskMetric) -> None:
    first, second = copy.deepcopy(metric), copy.deepcopy(metric)
    first.update(ANSWERS[:1], [["é\nnothing [0, 0, 1, 1]"]])
    second.update(ANSWERS[1:], [ANSWERS[1:]])
    first.answers = [*first.answers, *second.answers]
    whole = metric.score(ANSWERS, [["é\nnothing [0, 0, 1, 1]"], ANSWERS[1:]])
    assert first.compute().item() == pytest.approx(whole.value)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_computing_before_any_update_is_refused(metric: TaskMetric) -> None:
    with pytest.raises(ValueError, match="no predictions"):
        metric.compute()


def test_exact_match_takes_the_best_reference_and_ignores_case_and_margins() -> None:
    score = ExactMatch().score([" Red\n", "red ball"], [["blue", "RED"], ["red"]])
    assert score.per_sample == [100.0, 0.0]
    assert score.value == 50.0


def test_contains_finds_a_reference_but_not_a_blank_one() -> None:
    score = Contains().score(["a RED ball", "anything", ""], [["red"], [""], [" "]])
    assert score.per_sample == [100.0, 0.0, 0.0]


def test_contains_counts_a_refusal_as_wrong() -> None:
    assert Contains(refusal="Unanswerable").score(["Unanswerable red"], [["red"]]).value == 0.0


@pytest.mark.parametrize(
    ("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_ten_answers_give_the_standard_steps(matches: int, expected: float) -> None:
    references = ["yes"] * matches + ["no"] * (10 - matches)
    assert soft_accuracy("Yes.", references) == pytest.approx(expected)


@given(st.integers(1, 12), st.integers(0, 12))
def test_soft_accuracy_grows_with_agreement_up_to_one(count: int, matches: int) -> None:
    matches = min(matches, count)
    score = soft_accuracy("yes", ["yes"] * matches + ["no"] * (count - matches))
    more = soft_accuracy("yes", ["yes"] * min(matches + 1, count) + ["no"] * (count - matches - 1))
    assert 0.0 <= score <= more <= 1.0
    assert (score == 0.0) == (matches == 0)
    assert soft_accuracy("yes", ["yes"] * count) == 1.0


@settings(max_examples=50)
@given(st.text(max_size=40))
def test_normalizing_any_text_leaves_single_spaces_and_no_articles(text: str) -> None:
    words = normalize_answer(text).split(" ")
    assert words == [""] or all(words)
    assert not {"a", "an", "the", "two"} & set(words)


def test_contractions_are_recognized_with_one_apostrophe_left_out() -> None:
    assert CONTRACTIONS["couldnt've"] == CONTRACTIONS["couldn'tve"] == "couldn't've"
    assert normalize_answer("dont") == "don't"
    assert normalize_answer("well") == "well"


def test_soft_vqa_scores_in_percent() -> None:
    score = VQASoft().score(["two"], [["2"] * 3 + ["3"] * 7])
    assert score.value == pytest.approx(90.0)


def test_cider_depends_on_the_whole_set() -> None:
    alone, _ = cider(["a red ball"], [["a red ball"]])
    _, together = cider(["a red ball", "two dogs run"], [["a red ball"], ["two dogs run"]])
    assert alone == 0.0
    assert together == pytest.approx([7.5, 7.5])  # three words have no 4-grams


def test_cider_takes_empty_predictions_as_wrong() -> None:
    score = CIDEr("python").score(["", "two dogs run fast"], [["a ball"], ["two dogs run fast"]])
    assert score.per_sample == pytest.approx([0.0, 1000.0])


def test_cider_records_its_tokenizer() -> None:
    expected = "ptb" if shutil.which("java") else "python"
    assert CIDEr().tokenizer_name == expected
    assert CIDEr("python").tokenizer_name == "python"


def test_ptb_without_java_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert resolve_tokenizer("auto") == "python"
    with pytest.raises(ValueError, match="needs a Java runtime"):
        CIDEr("ptb")
    with pytest.raises(ValueError, match="tokenizer must be"):
        resolve_tokenizer("moses")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A red-haired man, 10:30 p.m.!", "a red-haired man 10:30 p.m."),
        ("can't (maybe)", "ca n't -lrb- maybe -rrb-"),
        ("$5.00 at St. Mary's", "$ 5.00 at st. mary 's"),
        ("!!! -- ?", "!!!"),
        ("Gonna rock 'n' roll, y'all", "gon na rock 'n' roll y' all"),
        ("He'd've paid \u20ac20 or \u00a33.50", "he 'd 've paid $ 20 or # 3.50"),
        ("red/blue 5-year-old at 10:30pm", "red/blue 5-year-old at 10:30 pm"),
        ("AT&T, at&t; C++ #tag me@x.org", "at&t at & t c++ #tag me@x.org"),
        ("Dr. Lee vs. No. 5 etc. it sat.", "dr. lee vs. no. 5 etc. it sat"),
        ("\u201cIt\u2019s 1\u00bd\u201d :) \U0001f44d", "it 's 1 1/2 :-rrb-"),
        (
            "\u4e1c\u4eac \u041c\u043e\u0441\u043a\u0432\u0430",
            "\u4e1c\u4eac \u043c\u043e\u0441\u043a\u0432\u0430",
        ),
        ("\ud800 x_y _", "\ud800 x_y _"),
    ],
)
def test_the_python_tokenizer_splits_like_the_treebank(text: str, tokens: str) -> None:
    assert tokenize_python(text) == tokens


def test_iou_reports_the_mean_overlap_and_keeps_unreadable_boxes_in_the_denominator() -> None:
    references = [["[0, 0, 1, 1]"]] * 3
    score = IoU().score(["[0, 0, 1, 1]", "[0, 0, 1, 0.6]", "no box"], references)
    assert score.per_sample == [100.0, 100.0, 0.0]
    assert score.details["mean_iou"] == pytest.approx(100 * 1.6 / 3)


def test_the_threshold_is_inclusive_or_not() -> None:
    half, whole = ["[0, 0, 1, 0.5]"], [["[0, 0, 1, 1]"]]
    assert IoU().score(half, whole).value == 100.0
    assert IoU(inclusive=False).score(half, whole).value == 0.0


def test_a_reference_without_a_box_is_an_error_of_the_data() -> None:
    with pytest.raises(ValueError, match="reference holds no box: 'left'"):
        IoU().score(["[0, 0, 1, 1]"], [["left"]])
    with pytest.raises(ValueError, match=r"threshold must be in 0..1, got 50"):
        IoU(threshold=50)


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60), st.lists(st.text(max_size=40), min_size=1, max_size=3))
def test_any_caption_has_finite_scores(prediction: str, references: list[str]) -> None:
    names = ("bleu", "rouge_l", "cider")
    found = score_captions([prediction, "a dog"], [references, ["a dog runs"]], "python", names)
    for name, (value, per_sample) in found.items():
        most = 10.0 if name == "cider" else 1.0
        for score in (value, *per_sample):
            assert 0.0 <= score <= most + 1e-9, name


@pytest.mark.parametrize("unit", ["a", "a ", "\u00bd", "+-", "x's", "<a", "1.", "a.", "\ud800"])
def test_ten_thousand_characters_of_a_caption_take_no_time(unit: str) -> None:
    text = (unit * 10_000)[:10_000]
    start = time.process_time()
    found = score_captions([text], [[text]], "python", ("bleu", "rouge_l", "cider"))
    assert found["rouge_l"][0] == pytest.approx(1.0)
    assert time.process_time() - start < 2.0


@needs_java
def test_the_java_tokenizer_takes_any_text_line_by_line() -> None:
    texts = [
        "",
        "\ud800 a",
        "a\nb\r\nc",
        "\u2028x\x85y",
        "\x00",
        " ",
        "\U0001f44d",
        "a" * 10_000,
        "",
    ]
    tokens = tokenize_ptb(texts)
    assert len(tokens) == len(texts)
    assert tokens[2] == "a b c"
    assert tokens[3] == "x y"
    assert tokens[7] == "a" * 10_000
