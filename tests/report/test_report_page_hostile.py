"""Run folders of strangers: nothing of them becomes markup, and no content stops the page."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from dmole.metrics import write_matrix
from dmole.report.page import heat, svg
from dmole.report.page.axes import Axis
from dmole.report.page.page import render
from dmole.report.page.record import RunRecord

EVIL = "<script>alert(1)</script>\"'&\u202e\u200b\x1b[31m {0} }}{{ {x}"
TABLES = {
    "allocation.csv": "stage,expert,modality,unit,score,selected,rank\n1,{0},{0},{0},1.5,1,8\n",
    "curriculum.csv": "stage,expert,modality,difficulty,budget,factor,step\n1,{0},{0},0.5,1,1.0,\n",
    "routing.csv": "stage,true_task,gate_set,count,phase\n1,{0},{0},3,test\n1,b,base,2,test\n",
}


def text_of(folder: Path) -> str:
    return render([RunRecord(folder)])


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


@pytest.fixture
def evil_run(runs: list[Path]) -> Path:
    """A run whose every text is hostile."""
    run = runs[2]
    write_matrix(run / "evaluation_matrix.csv", [[0, 0], [9, 1], [4, 7]], [EVIL, "b"])
    write_matrix(run / "oracle_matrix.csv", [[0, 0], [9, 1], [9, 7]], [EVIL, "b"])
    for name, text in TABLES.items():
        (run / name).write_text(text.replace("{0}", quoted(EVIL)))
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["definitions"] = dict.fromkeys(metrics["definitions"], EVIL)
    metrics["parent"] = {"run": EVIL}
    metrics["constant_answer"] = {EVIL: {"answer": EVIL, "score": 1.0}}
    (run / "metrics.json").write_text(json.dumps(metrics))
    phase = {"stage": 1, "name": EVIL, "phase": EVIL, "seconds": 1.0}
    timing = {"seconds": 1, "phases": [phase], "parameters": {"base": 9, "trainable": {EVIL: 3}}}
    (run / "timing.json").write_text(json.dumps(timing))
    (run / "config.yaml").write_text(json.dumps({"trainer": {"name": "<b onload=x>"}}))
    return run


def test_no_text_of_a_run_becomes_markup(evil_run: Path) -> None:
    text = text_of(evil_run)
    assert 'class="error"' not in text  # every section draws it
    assert "<script>alert" not in text
    assert "<b onload" not in text
    assert not set("\u202e\u200b\x1b") & set(text)
    assert "&lt;script&gt;alert(1)" in text
    titles = re.findall(r'title="([^"]*)"', text)
    assert any("&#34;&#39;&amp;" in title for title in titles)


@pytest.mark.parametrize("name", [*TABLES, "metrics.json", "timing.json", "digests.json"])
def test_damage_costs_a_section_and_never_the_page(evil_run: Path, name: str) -> None:
    path, rng = evil_run / name, random.Random(name)
    whole = path.read_bytes() if path.exists() else b'{"format": 1, "stages": [], "files": {}}'
    for _ in range(6):
        content = bytearray(whole)
        for _ in range(rng.choice([1, 2, 8])):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
        assert text_of(evil_run).endswith("</html>")


def test_a_link_to_a_device_is_refused_and_shown(evil_run: Path) -> None:
    path = evil_run / "routing.csv"
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "it is a device, not a file" in text_of(evil_run)


@pytest.mark.parametrize("name", ["routing.csv", "predictions/stage_1.jsonl", "router/a.json"])
def test_an_altered_file_is_named_at_the_top_without_the_path_of_the_run(
    evil_run: Path, name: str
) -> None:
    (evil_run / name).parent.mkdir(exist_ok=True)
    if not (evil_run / name).exists():
        (evil_run / name).write_text("{}\n")
    digest = {"format": 1, "stages": [], "files": {name: "0" * 64}}
    (evil_run / "digests.json").write_text(json.dumps(digest))
    text = text_of(evil_run)
    assert f": {name} is not the file that this run has written" in text
    assert f"{evil_run}/{name} is not" not in text
    brief = render([RunRecord(evil_run)], costly=False)  # after a stage, small tables alone
    assert (f"{name} is not the file" in brief) == (name == "routing.csv")


def test_what_is_drawn_is_bounded(runs: list[Path]) -> None:
    names = [f"task{index}" for index in range(400)]
    scores = [[1.0] * len(names)] * 300
    for name in ("evaluation_matrix.csv", "oracle_matrix.csv"):
        write_matrix(runs[0] / name, scores, names)
    text = text_of(runs[0])
    assert f"The first {heat.MOST} rows and {heat.MOST} columns are shown" in text
    assert len(text) < 15e6


def test_ticks_are_round_and_values_beyond_an_axis_stay_on_it() -> None:
    assert list(Axis("", 0.0, 97.0).labels().values()) == ["0", "20", "40", "60", "80"]
    assert list(Axis("", 0.1, 30.0, log=True).labels()) == [0.1, 0.2, 0.5, 1, 2, 5, 10, 20]
    plot = svg.Plot("", Axis("", 0.0, 1.0), Axis("", 0.0, 1.0))
    assert plot.place(7.0, -3.0) == plot.place(1.0, 0.0)
