"""What the page says is what it shows, for runs whose tasks are not learned one after the other."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dmole.metrics import write_matrix
from dmole.report.kept_routing import RoutedTask
from dmole.report.page.axes import score_axis
from dmole.report.page.page import write_report
from dmole.report.page.record import RunRecord
from dmole.report.page.samples import Rerouted
from dmole.report.page.sections.activation import ACTIVATION
from dmole.report.page.sections.architecture import ARCHITECTURE
from dmole.report.page.sections.confusions import CONFUSIONS
from dmole.report.page.sections.forgetting import FORGETTING
from dmole.report.page.sections.losses import _ratios
from dmole.report.page.sections.sensitivity import _best, _scores
from dmole.report.page.sections.summary import SUMMARY
from dmole.report.page.sections.training import MOST_ENDS, _figure, _Logged
from dmole.report.style import COLORS

MakeRun = Callable[..., Path]


def learn(run: Path, *tasks: str) -> None:
    """Record a stage for each task, with an expert of its name."""
    stages = [{"index": i, "name": n, "expert": n, "common": None, "tasks": [n]}
              for i, n in enumerate(tasks, start=1)]  # fmt: skip
    (run / "digests.json").write_text(json.dumps({"format": 1, "stages": stages, "files": {}}))


def test_the_legend_has_the_colors_of_the_lines_if_the_first_column_is_not_learned(
    tmp_path: Path,
) -> None:
    names = ["scored", "color", "count"]
    write_matrix(tmp_path / "evaluation_matrix.csv", [[9, 0, 0], [9, 8, 0], [9, 8, 7]], names)
    learn(tmp_path, "color", "count")
    text = str(FORGETTING.draw(RunRecord(tmp_path)))
    for task, color in (("color", COLORS[1]), ("count", COLORS[2])):
        assert f'<g class="series" data-task="{task}" stroke="{color}"' in text
        assert re.search(f'<li data-task="{task}"><svg [^>]*><g stroke="{color}"', text)


def test_a_run_without_stages_has_learned_no_task(make_run: MakeRun, tmp_path: Path) -> None:
    config = {"trainer": {"stream": {"class_path": "dmole.streams.ZeroShotStream"}}}
    run = make_run(tmp_path / "z" / "version_0", "zero_shot", [[10, 20]], config=config)
    assert "<dt>Tasks learned</dt><dd>0 of 2</dd>" in str(SUMMARY.draw(RunRecord(run)))


def test_only_an_expert_of_several_tasks_has_the_badge_of_one(tmp_path: Path) -> None:
    names = [f"t{index}" for index in range(len(COLORS))]
    write_matrix(tmp_path / "evaluation_matrix.csv", [[0] * len(names)] * 3, names)
    rows = [f"1,{expert},vision,vision.0,1.5,1,8\n" for expert in (names[-1], "shared")]
    header = "stage,expert,modality,unit,score,selected,rank\n"
    (tmp_path / "allocation.csv").write_text(header + "".join(rows))
    text = str(ARCHITECTURE.draw(RunRecord(tmp_path)))
    assert re.findall('<b class="badge ([^"]*)"', text) == [f"b{len(COLORS) - 1}", "several"]


@pytest.mark.parametrize("routed", [True, False], ids=["run", "evaluation"])
def test_the_expert_that_updates_a_task_is_its_own_expert(tmp_path: Path, routed: bool) -> None:
    write_matrix(tmp_path / "evaluation_matrix.csv", [[0], [5], [8]], ["color"])
    learn(tmp_path, "color", "color-v2")
    if routed:
        (tmp_path / "router").mkdir()
        (tmp_path / "router" / "router.json").write_text('{"updates": {"color-v2": "color"}}')
    tasks = [{"name": "color"}, {"name": "color-v2", "update": True}]
    (tmp_path / "config.yaml").write_text(json.dumps({"data": {"tasks": tasks}}))
    header = "stage,true_task,gate_set,count\n"
    (tmp_path / "routing.csv").write_text(f"{header}2,color,color-v2,3\n2,color,other,1\n")
    text = str(ACTIVATION.draw(RunRecord(tmp_path)))
    (own,) = re.findall('<td class="[^"]* own"[^>]*title="([^"]*)"', text)
    assert own == "color by color-v2: 75.0 % of 4 samples"


def test_quantiles_of_losses_are_not_cut_where_the_axis_ends() -> None:
    losses = np.full((3, 1), 1e-6, dtype=np.float32)
    routing: Any = SimpleNamespace(fitted=["color"], thresholds=np.array([0.5]))
    again = Rerouted(routing, {"color": RoutedTask("color", ("color",), "abc", losses, ())})
    own, other = _ratios(again, 0)
    assert own.tolist() == pytest.approx([2e-6] * 3)
    assert len(other) == 0


def test_runs_whose_long_names_differ_in_the_middle_keep_their_columns(
    make_run: MakeRun, tmp_path: Path
) -> None:
    folders = [tmp_path / f"{'a' * 40}_seed{seed}_{'b' * 40}" / "version_0" for seed in (0, 1)]
    runs = [
        make_run(f, "d", [[0, 0], [score, 9]]) for f, score in zip(folders, (71, 53), strict=True)
    ]
    text = write_report(runs, tmp_path / "page.html").read_text(encoding="utf-8")
    assert ">40.00</td>" in text  # Last of the first run
    assert ">31.00</td>" in text


def test_a_stage_without_a_column_has_no_mean(tmp_path: Path) -> None:
    write_matrix(tmp_path / "evaluation_matrix.csv", [[0], [5], [8]], ["color"])
    learn(tmp_path, "hidden", "color")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = str(FORGETTING.draw(RunRecord(tmp_path)))
    assert "routed, after stage 1" not in text
    assert "routed, after stage 2: 8.0 %" in text


def test_ends_of_stages_are_the_last_logged_steps_and_bounded() -> None:
    curve = [(0, 2.0), (69, 1.0), (79, 3.0)]
    logged = _Logged({"loss": curve}, dict.fromkeys(range(1, 1000), 69))
    text = str(_figure("Loss", "loss", {"loss": curve}, logged))
    assert "end of stage 1, last logged step 69" in text
    assert text.count("end of stage") == MOST_ENDS


def test_base_is_right_for_samples_of_a_task_that_is_not_learned(tmp_path: Path) -> None:
    write_matrix(tmp_path / "evaluation_matrix.csv", [[0, 1], [5, 1]], ["color", "scored"])
    learn(tmp_path, "color")
    (tmp_path / "metrics.json").write_text('{"routing": {"own_first": 50.0}}')
    rows = "1,color,color,3\n1,color,base,1\n1,scored,base,2\n"
    (tmp_path / "routing.csv").write_text("stage,true_task,gate_set,count\n" + rows)
    text = str(CONFUSIONS.draw(RunRecord(tmp_path)))
    own = re.findall('<td class="[^"]* own"[^>]*title="([^:]*):', text)
    assert own == ["color to color", "scored to base"]


def test_scores_above_100_percent_stay_on_their_axis() -> None:
    assert score_axis(np.array([[np.nan, 130.0]])).share(120.0) < 1.0
    assert score_axis(np.array([[np.nan, 40.0]])).high == 100.0


def test_unknown_answers_may_score_what_the_best_known_one_does() -> None:
    known = {"1": {frozenset({"caption"}): 250.0}, "2": {frozenset[str](): 150.0}}
    assert _best(known) == 250.0
    assert _best({"1": {frozenset({"count"}): 50.0}, "2": {}}) == 100.0
    scores, shares = np.array([[200.0, 200.0]]), np.array([[50.0, 100.0]])
    text = str(_scores([0.5, 1.0], scores, shares, np.array([[_best(known)]])))
    assert "between 100.0 and 225.0 %" in text
    assert "between" not in text.replace("between 100.0 and 225.0 %", "")
