"""`dmole data check` ends as `dmole fit` does: each error it lists stops a run, and no other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from small_runs import NO_FIGURES, FitWords

from dmole.cli.main import main

Change = Callable[[list[dict[str, Any]], list[dict[str, Any]]], Any]


def items(split: str, count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"{split}{n}", "image": f"{n}.png", "text": f"{split} {n} ?", "answer": f"red {n}"}
        for n in range(count)
    ]


def set_train(**keys: Any) -> Change:
    return lambda train, test: train[2].update(keys)


def set_test(**keys: Any) -> Change:
    return lambda train, test: test[1].update(keys)


@pytest.fixture
def verdicts(
    fit_words: FitWords,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Iterator[tuple[int, str]]]:
    """Return status and output of ``data check``, then those of ``fit``."""
    monkeypatch.chdir(tmp_path)
    for n in range(8):
        Image.radial_gradient("L").resize((20 + n, 20)).save(f"{n}.png")
    Path("cut.png").write_bytes(Path("0.png").read_bytes()[:80])
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save("clear.png")

    def run(change: Change, task: dict[str, Any], data: dict[str, Any]) -> Iterator[Any]:
        train, test = items("train", 8), items("test", 3)
        change(train, test)
        Path("train.json").write_text(json.dumps(train))
        Path("test.json").write_text(json.dumps(test))
        tasks = [{"name": "t", "train": "train.json", "test": "test.json", "max_new_tokens": 6}]
        own = {"data": {"tasks": [tasks[0] | task], **data}}
        Path("own.yaml").write_text(yaml.safe_dump(own))
        words = fit_words(tmp_path / "runs", "--config", "own.yaml")
        for verb, more in ((["data", "check", "--processes", "0"], ()), (["fit"], NO_FIGURES)):
            status = main([*verb, *words[1:], *more])
            captured = capsys.readouterr()
            yield status, captured.out + captured.err

    return run


ERRORS: dict[str, tuple[Change, dict[str, Any], dict[str, Any], str]] = {
    "malformed": (set_train(answer=None), {}, {}, "train2"),
    "empty answer": (set_test(answer=" "), {}, {}, "test1"),
    "missing image": (set_train(image="no.png"), {}, {}, "train2"),
    "same id": (set_train(id="train1"), {}, {}, "train1"),
    "broken image": (set_train(image="cut.png"), {}, {}, "cut.png"),
    "broken test image": (set_test(image="cut.png"), {}, {}, "cut.png"),
    "placeholders": (set_train(text="<image> <image> ?"), {}, {}, "train2"),
    "long sample": (set_train(text="what " * 600), {}, {}, "train2"),
    "long prompt": (set_test(text="what " * 600), {}, {}, "test1"),
    "long answer": (set_train(answer="red " * 30), {}, {"max_length": 90}, "train2"),
    "video": (set_test(video="a.mp4"), {}, {}, "test1"),
    "metric": (set_test(answer="no box"), {"metric": "iou"}, {}, "no box"),
    "one sample": (lambda train, test: train.__delitem__(slice(1, None)), {}, {}, "t"),
    "same name": (set_train(), {"name": "no/name"}, {}, "no/name"),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.slow) if n % 7 else case
        for n, case in enumerate(ERRORS)
    ],
)
def test_an_error_of_the_check_stops_fit(
    verdicts: Callable[..., Iterator[tuple[int, str]]], case: str
) -> None:
    change, task, data, culprit = ERRORS[case]
    (checked, found), (fitted, said) = verdicts(change, task, data)
    assert (checked, fitted) == (1, 1)
    assert culprit in found.splitlines()[-1] + "".join(
        line for line in found.splitlines() if line.startswith("error ")
    )
    assert culprit in said.splitlines()[-1]


def test_warnings_of_the_check_do_not_stop_fit(
    verdicts: Callable[..., Iterator[tuple[int, str]]],
) -> None:
    def change(train: list[dict[str, Any]], test: list[dict[str, Any]]) -> None:
        train[0].update(image="clear.png", context="unread")
        test[0].update(answer="red</s>")
        test[1].update(answer="red " * 9)
        train[3].update(answer="red " * 30)

    data = {"max_length": 90, "on_too_long": "truncate"}
    (checked, found), (fitted, _) = verdicts(change, {}, data)
    kinds = {line.split()[1].rstrip(":") for line in found.splitlines() if "warning " in line[:8]}
    assert kinds >= {
        *("image_transparency", "image_blank", "unread_keys", "unreachable_reference"),
        "will_be_cut",
    }
    assert (checked, fitted) == (0, 0)
