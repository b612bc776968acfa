"""References that no answer of the model can equal are found by asking tokenizer and metric."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dmole.data.task import Task
from dmole.demo.tiny import TINY_PATH
from dmole.doctor import BaseModel
from dmole.doctor.references import Generator, examine_references
from dmole.doctor.source import CheckedSource
from dmole.metrics import TaskMetric, TaskScore
from dmole.metrics.base import ScoringItem, mean_score

TINY = BaseModel(str(TINY_PATH))


class Exact(TaskMetric):
    """Equality without any normalization."""

    def _score(self, items: Sequence[ScoringItem]) -> TaskScore:
        return mean_score([float(item.text in item.references) for item in items])


class Letters(TaskMetric):
    """Equality of the letters alone."""

    def _score(self, items: Sequence[ScoringItem]) -> TaskScore:
        def letters(text: str) -> str:
            return "".join(filter(str.isalpha, text.split("<")[0]))

        return mean_score([float(letters(i.text) in map(letters, i.references)) for i in items])


class Picky(TaskMetric):
    """Refuses a reference that is no number."""

    def _score(self, items: Sequence[ScoringItem]) -> TaskScore:
        numbers = [float(reference) for item in items for reference in item.references]
        return mean_score([1.0 for _ in numbers])


def messages(
    root: Path, answers: Sequence[Any], metric: Any = "exact_match", **task: Any
) -> dict[int | None, tuple[str, str]]:
    items = [{"id": f"i{n}", "text": "what ?", "answer": text} for n, text in enumerate(answers)]
    (root / "test.json").write_text(json.dumps(items))
    source = CheckedSource.of(Task("t", test="test.json", **task), "test", root)
    assert isinstance(source, CheckedSource)
    report = examine_references(source, 9, metric, TINY)
    return {finding.item: (finding.kind, finding.message) for finding in report.findings}


def test_a_reference_with_an_end_token_is_named(tmp_path: Path) -> None:
    found = messages(tmp_path, ["red", "red</s>", "a </s> b", ["red", "blue</s>"]])
    assert set(found) == {1, 2}  # another accepted answer of the last item can be given
    kind, text = found[1]
    assert kind == "unreachable_reference"
    assert "'red</s>' holds '</s>', which ends an answer: at most 0 of 100 percent" in text


def test_a_reference_longer_than_an_answer_is_named(tmp_path: Path) -> None:
    found = messages(tmp_path, ["red", "red " * 9 + "blue"], max_new_tokens=8)
    assert set(found) == {1}
    assert "has 10 tokens, more than max_new_tokens 8" in found[1][1]
    assert messages(tmp_path, ["red " * 7 + "blue"], max_new_tokens=8) == {}
    # the first eight words are enough for this metric
    assert messages(tmp_path, ["red" * 3, "red " * 9 + "blue"], "contains", max_new_tokens=30) == {}


def test_a_special_token_that_decoding_drops_is_named(tmp_path: Path) -> None:
    tokenizer = __import__("transformers").AutoTokenizer.from_pretrained(TINY_PATH)
    special = next(t for t in tokenizer.all_special_tokens if t != tokenizer.eos_token)
    found = messages(tmp_path, [f"a {special} b"])
    assert "is decoded as" in found[0][1]


@pytest.mark.parametrize(("metric", "items"), [(Exact(), {0, 1}), (Letters(), set())])
def test_only_what_the_metric_cannot_bridge_is_reported(
    tmp_path: Path, metric: TaskMetric, items: set[int]
) -> None:
    assert set(messages(tmp_path, [" red", "red</s>", "red"], metric)) == items


def test_a_reference_that_its_metric_scores_with_zero_is_named(tmp_path: Path) -> None:
    class Zero(Exact):
        def _score(self, items: Sequence[ScoringItem]) -> TaskScore:
            return mean_score([float(item.text != "the") for item in items])

    found = messages(tmp_path, ["red", "the"], Zero())
    assert found == {1: ("unreachable_reference", "the metric gives 0 to its own reference 'the'")}


def test_a_reference_that_the_metric_refuses_is_an_error_of_its_item(tmp_path: Path) -> None:
    found = messages(tmp_path, ["1", "x", "2"], Picky())
    assert set(found) == {1}
    assert found[1][0] == "metric"
    assert "could not convert string to float: 'x'" in found[1][1]
    assert set(messages(tmp_path, ["[1, 2, 3, 4]", "no box"], "iou")) == {1}


def test_letters_that_a_tokenizer_does_not_keep_are_found() -> None:
    class Tokenizer:
        """Knows lower case letters and joins spaces."""

        def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

    class Processor:
        tokenizer = Tokenizer()

        def batch_decode(self, rows: list[list[int]], **options: bool) -> list[str]:
            assert options.pop("skip_special_tokens")
            assert not any(options.values())
            texts = ["".join(map(chr, row)) for row in rows]
            return [" ".join(t.encode("ascii", "replace").decode().split()) for t in texts]

    generator = Generator(Processor(), 30, [0])
    generator.learn(["plain", "ﬁne", "two  spaces"])
    assert generator.answer("plain").reason == ""
    assert generator.answer("ﬁne").reason == "is decoded as '?ne'"
    assert generator.answer("two  spaces").text == "two spaces"
