"""The table of learning and routing: its figures, pairs of seeds, runs of earlier versions."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from dmole.metrics import write_matrix
from dmole.report import compare, load_run
from dmole.report.compare import group_runs
from dmole.report.grids import learning_grid
from dmole.report.notes import make_notes
from dmole.report.tables import markdown_grid
from dmole.storage.digests import Digests, file_digest, write_digests
from tests.report.conftest import NAMES, MakeRun

TITLE = "### Learning and routing\n\n"
ROUTING = {
    "own_first": 60.0,
    "rejected": 1.0,
    "foreign_too": 66.5,
    "second_expert": 65.0,
    "unseen_accepted": None,
    "trained_with_partner": 30.0,
}
COUNTS = """stage,true_task,gate_set,count,phase
1,color,color,100,test
2,color,color+count+shared,30,test
2,color,color+shared,70,test
2,count,count+color,10,test
2,count,count,80,test
2,count,base,10,test
2,count,count+color,900,train
"""


def table(folders: list[Path]) -> list[str]:
    """Return the rows of the table, without bold."""
    groups = group_runs([load_run(folder) for folder in folders])
    grid = learning_grid(groups)
    text = markdown_grid(grid, make_notes(groups, [grid], {}, []))
    return text.replace("**", "").splitlines()[2:]


def edit(run: Path, change: Any) -> None:
    """Change the content of ``metrics.json``."""
    metrics = json.loads((run / "metrics.json").read_text())
    change(metrics)
    (run / "metrics.json").write_text(json.dumps(metrics))


def without_learned(metrics: dict[str, Any]) -> None:
    """Remove what earlier versions did not write."""
    for figures in (metrics, metrics["definitions"]):
        del figures["Learned"]
    metrics.get("routing", {}).pop("second_expert", None)


def older_run(make_run: MakeRun, folder: Path, counts: str = COUNTS) -> Path:
    """Return a run of an earlier version, with a router and the expert ``shared``."""
    run = make_run(folder, "older", [[0, 0], [90, 5], [70, 60]], metrics={"routing": ROUTING})
    edit(run, without_learned)
    (run / "routing.csv").write_text(counts)
    digests = {name: file_digest(run / name) for name in ("routing.csv", "metrics.json")}
    write_digests(run, Digests(digests, ({"index": 1}, {"index": 2, "common": "shared"})))
    return run


def test_the_table_holds_learning_and_routing_of_each_method(
    make_run: MakeRun, tmp_path: Path
) -> None:
    routed = {"metrics": {"routing": ROUTING}}
    folders = [
        make_run(tmp_path / "d0", "dmole", [[2, 1], [90, 5], [70, 60]], 0, **routed),
        make_run(tmp_path / "d1", "dmole", [[2, 1], [80, 7], [70, 40]], 1, **routed),
        make_run(tmp_path / "f1", "finetune", [[2, 1], [88, 1], [88, 72]], 1),
        make_run(tmp_path / "f0", "finetune", [[2, 1], [86, 1], [86, 70]], 0),
    ]
    text = compare(folders, tmp_path / "out")
    _, _, below = text.partition(TITLE)
    assert below.splitlines()[0] == (
        "| method | runs | Learned | Learned - finetune | BWT | oracle BWT | Transfer "
        "| trained with partner | second expert | foreign too | own first |"
    )
    # Learned 75 and 60, alone 78 and 80: the pairs by seed differ by -3 and -20
    assert below.splitlines()[2:4] == [
        "| dmole | 2 | 67.50 ± 10.61 | -11.50 ± 12.02 | -15.00 ± 7.07 | 0.00 ± 0.00 "
        "| **5.00 ± 1.41** | 30.00 ± 0.00 | 65.00 ± 0.00 | 66.50 ± 0.00 | 60.00 ± 0.00 |",
        "| finetune | 2 | **79.00 ± 1.41** | **0.00 ± 0.00** | **0.00 ± 0.00** | 0.00 ± 0.00 "
        "| 0.00 ± 0.00 | n/a | n/a | n/a | n/a |",
    ]
    assert "- Learned: mean_i R[s_i,i]; tasks learned by the last stage; divisor 2\n" in below
    assert "- second expert: share of the test samples of seen tasks" in below
    assert text.count("- BWT: ") == text.count("- oracle BWT: ") == 1  # where it is first used
    assert "Learned |" not in text.splitlines()[0]


def test_the_table_is_written_as_data_and_for_latex(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", "a", [[2, 1], [90, 5], [70, 60]], metrics={"routing": ROUTING})
    compare([run], tmp_path)
    with (tmp_path / "learning.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["method"], row["Learned"], row["Learned sd"]) == ("a", "75.0", "")
    assert (row["Learned - finetune"], row["second expert"]) == ("", "65.0")
    _, _, latex = (tmp_path / "comparison.tex").read_text().partition("{tab:learning}")
    assert r"a & 1 & 75.00 & n/a & $-$20.00 & 0.00 & 4.00 & 30.00 & 65.00" in latex
    assert r"Learned: mean\_i R{[}s\_i,i{]}" in latex


@pytest.mark.parametrize(
    ("name", "seeds", "config"),
    [
        ("other", [0, 1], {}),
        ("finetune", [0, 2], {}),
        ("finetune", [0, 1], {"seed_everything": None}),
    ],
    ids=["no such method", "a seed is missing", "a run without a seed"],
)
def test_without_a_run_of_the_same_seed_there_is_no_difference(
    make_run: MakeRun, tmp_path: Path, name: str, seeds: list[int], config: dict[str, None]
) -> None:
    matrix = [[0, 0], [90, 5], [70, 60]]
    folders = [make_run(tmp_path / f"a{seed}", "a", matrix, seed) for seed in (0, 1)]
    for seed in seeds:
        changed = config if seed else {}
        folders.append(make_run(tmp_path / f"f{seed}", name, matrix, seed, config=changed))
    assert table(folders)[0].startswith("| a | 2 | 75.00 ± 0.00 | n/a |")


def test_further_seeds_of_finetune_do_not_matter(make_run: MakeRun, tmp_path: Path) -> None:
    one = make_run(tmp_path / "a", "a", [[0, 0], [90, 5], [70, 60]], 1)
    alone = [
        make_run(tmp_path / f"f{seed}", "finetune", [[0, 0], [80, 0], [80, last]], seed)
        for seed, last in ((0, 20.0), (1, 60.0))
    ]
    assert table([one, *alone])[0].startswith("| a | 1 | 75.00 | 5.00 |")


def test_figures_that_an_earlier_version_did_not_write_are_derived(
    make_run: MakeRun, tmp_path: Path
) -> None:
    older = older_run(make_run, tmp_path / "older")
    run = load_run(older)
    assert run.figure("Learned") == 75.0
    assert run.routing_rate("second_expert") == 100 * 40 / 200
    assert run.routing_rate("own_first") == 60.0
    now = make_run(tmp_path / "now", "now", [[0, 0], [90, 5], [70, 60]])
    groups = {"older": [run], "now": [load_run(now)]}
    notes = make_notes(groups, [learning_grid(groups)], {}, [])
    assert len(notes.definitions["Learned"]) == 1  # the derived text is that of today


def test_a_rate_stays_missing_where_no_file_states_the_common_expert(
    make_run: MakeRun, tmp_path: Path
) -> None:
    older = older_run(make_run, tmp_path / "older")
    (older / "digests.json").unlink()
    assert math.isnan(load_run(older).routing_rate("second_expert"))
    assert "| 30.00 | n/a | 66.50 | 60.00 |" in table([older])[0]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("stage,task\n", "line 1: expected the header stage,true_task,gate_set,count"),
        (COUNTS + "2,count,base\n", "line 9: expected stage,"),
        (COUNTS + "2,count,base,-3,test\n", "line 9: expected stage,"),
        (COUNTS + '2,"count\n', "broken table"),
    ],
)
def test_a_broken_table_of_gate_sets_is_named(
    make_run: MakeRun, tmp_path: Path, counts: str, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"routing\.csv.*{message}"):
        load_run(older_run(make_run, tmp_path / "older", counts))


def test_an_edited_table_of_gate_sets_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    older = older_run(make_run, tmp_path / "older")
    (older / "routing.csv").write_text(COUNTS.replace("30", "31"))
    with pytest.raises(ValueError, match=r"routing\.csv is not the file that this run has written"):
        load_run(older)


def test_a_stage_of_two_tasks_is_read_from_the_oracle_matrix(
    make_run: MakeRun, tmp_path: Path
) -> None:
    older = make_run(tmp_path / "joint", "joint", [[0, 0], [90, 80]])
    write_matrix(older / "oracle_matrix.csv", [[math.nan] * 2, [90, 80]], NAMES)
    edit(older, without_learned)
    assert load_run(older).figure("Learned") == 85.0
    assert table([older])[0].startswith("| joint | 1 | 85.00 | n/a |")


@pytest.mark.parametrize(
    ("matrix", "learned"), [([[0, 0], [90, 5], [70, 60]], "75.00"), ([[0, 0], [90, 80]], "n/a")]
)
def test_without_an_oracle_matrix_each_stage_learns_one_task_or_it_is_unknown(
    make_run: MakeRun, tmp_path: Path, matrix: list[list[float]], learned: str
) -> None:
    older = make_run(tmp_path / "a", "a", matrix)
    (older / "oracle_matrix.csv").unlink()
    edit(older, without_learned)
    edit(older, lambda metrics: metrics.pop("oracle"))
    cells = table([older])[0].split(" | ")
    assert cells[2] == learned
    assert cells[5] == "n/a"  # oracle BWT
