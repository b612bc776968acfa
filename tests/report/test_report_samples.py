"""The sections about single samples: every text is escaped, and what is missing is left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dmole.report import projection
from dmole.report.history import StageAnswer, Story
from dmole.report.page.page import render
from dmole.report.page.record import RunRecord
from dmole.report.page.sections.cases import kind_of
from dmole.report.projection import project
from dmole.storage.case_images import FILE, Case, encode_image
from dmole.storage.files import write_json, write_lines

EVIL = "</td><script>alert('\u202e')</script>"
IMAGE = encode_image(Image.new("RGB", (8, 8), "red"))

Lines = dict[int, list[dict[str, Any]]]


def line(name: str, gates: str, score: float, text: str = "so") -> dict[str, Any]:
    answer = {"task": "color", "id": name, "prompt": f"how? {EVIL}", "prediction": text}
    return {**answer, "references": ["so", EVIL], "score": score, "gate_set": gates}


LINES: Lines = {
    0: [line("kept", "base", 0.0), line("lost", "base", 0.0), line("found", "base", 0.0)],
    1: [line("kept", "color", 100.0), line("lost", "color", 100.0), line("found", "base", 0.0)],
    2: [line("kept", "color", 100.0), line("lost", "count", 0.0, EVIL), line("found", "color", 50)],
}


@pytest.fixture
def run(runs: list[Path]) -> Path:
    """A run of two stages with predictions, images and counts of its router."""
    run = runs[0]
    for stage, lines in LINES.items():
        write_lines(run / "predictions" / f"stage_{stage}.jsonl", lines)
    write_lines(run / FILE, [Case("color", name, (IMAGE,)).line() for name in ("kept", "lost")])
    stages = [{"index": i, "name": n, "expert": n, "common": None, "tasks": [n]}
              for i, n in enumerate(("color", "count"), start=1)]  # fmt: skip
    write_json(run / "digests.json", {"format": 1, "stages": stages, "files": {}})
    metrics = json.loads((run / "metrics.json").read_text())
    write_json(run / "metrics.json", {**metrics, "routing": {"own_first": 50.0}})
    (run / "routing.csv").write_text(
        "stage,true_task,gate_set,count\n2,color,color,2\n2,color,count+color,1\n2,count,count,3\n"
    )
    return run


def test_samples_are_shown_with_images_forgotten_ones_first_and_nothing_is_executed(
    run: Path,
) -> None:
    text = render([RunRecord(run)])
    assert 'id="cases"' in text
    assert "1 forgotten, 1 kept of 2 followed samples" in text
    assert text.index(">forgotten</span> <code>lost") < text.index(">kept</span> <code>kept")
    assert text.count(f'<img src="data:image/jpeg;base64,{IMAGE}"') == 3  # lost is confused, too
    assert "<script>alert" not in text
    assert "\u202e" not in text
    assert "&lt;script&gt;alert(" in text
    assert "1 to 2</th>" in text


def test_confused_samples_stand_below_the_matrix(run: Path) -> None:
    text = render([RunRecord(run)])
    assert 'title="color to count: 1 samples, 33.3 %"' in text
    assert "<b>color</b> given to count: 1 sample</summary>" in text


def test_a_router_that_does_not_tell_tasks_apart_has_no_confusions(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    write_json(run / "metrics.json", {**metrics, "routing": None})
    assert 'id="confusions"' not in render([RunRecord(run)])


def in_folders(run: Path) -> None:
    """Store the predictions as runs of earlier versions did."""
    for stage, lines in LINES.items():
        (run / "predictions" / f"stage_{stage}.jsonl").unlink()
        write_lines(run / "predictions" / f"stage_{stage}" / "color.jsonl", lines)


def damage_images(run: Path) -> None:
    (run / FILE).write_text('{"task": "color", "id": "kept", "images": ["<svg>"]}\n')


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (in_folders, "1 forgotten, 1 kept of 2 followed samples"),
        (lambda run: (run / FILE).unlink(), "kept no images of its test samples"),
        (damage_images, "line 1: &#39;&lt;svg&gt;&#39; is not a small JPEG in base64"),
        (lambda run: (run / "digests.json").unlink(), "of 2 followed samples"),
        (lambda run: (run / "routing.csv").unlink(), "1 forgotten, 1 kept"),
    ],
)
def test_older_and_damaged_runs_show_the_rest(
    change: Callable[[Path], object], expected: str, run: Path
) -> None:
    change(run)
    text = render([RunRecord(run)])
    assert expected in text
    assert 'id="cases"' in text


@pytest.mark.parametrize("content", [b'{"task": "color", "id": 7}\n', b"{", b'["a"]\n', b"\xff\n"])
def test_damaged_predictions_are_named(content: bytes, run: Path) -> None:
    (run / "predictions" / "stage_2.jsonl").write_bytes(content)
    text = render([RunRecord(run)])
    assert 'class="error"' in text
    assert "predictions" in text


@pytest.mark.parametrize(
    ("scores", "kind"),
    [
        ([0, 100, 100], "kept"),
        ([100, 0, 100], "saved"),
        ([0, 100, 0], "forgotten"),
        ([0, 0, 100, 0], "forgotten"),
        ([100, 0, 0], "not learned"),
    ],
)
def test_a_sample_is_judged_from_the_stage_that_learned_its_task(
    scores: list[float], kind: str
) -> None:
    answers = [StageAnswer(stage, "so", score, "base") for stage, score in enumerate(scores)]
    assert kind_of(Story("a", "1", "how?", (), answers), learned_at=1) == kind


def test_projections_are_the_same_each_time_and_say_why_there_is_no_tsne(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = np.random.default_rng(0).normal(size=(60, 20))
    rows[:30] += 9
    points = project(rows)
    np.testing.assert_array_equal(points, project(rows))
    gap = abs(points[:30].mean(axis=0) - points[30:].mean(axis=0)).max()
    assert gap > 2 * points[:30].std(axis=0).max()
    assert "at least 50 samples" in projection.why_not_tsne(49)
    assert project(rows[:1]).tolist() == [[0.0, 0.0]]
    monkeypatch.setattr(projection, "find_spec", lambda name: None)
    assert "pip install 'dmole[report]'" in projection.why_not_tsne(60)
    assert project(rows).shape == (60, 2)
