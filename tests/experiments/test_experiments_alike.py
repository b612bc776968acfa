"""The tables of the page on alike tasks: what is paired with what, and the jobs of its plan."""

from __future__ import annotations

import pytest
import torch

from experiments.alike import CONFIG, PLAN, chosen_rate, final_jobs, row_settings, search_jobs
from experiments.alike_tables import PAGE, advantage, interval, summary_table
from experiments.routing_rules import Study


def figures(**last: float) -> dict[tuple[str, int], dict[str, float]]:
    """Return runs by names such as ``given_0``, each with its Last."""
    runs = {}
    for name, value in last.items():
        order, seed = name.split("_")
        runs[order, int(seed)] = {"Last": value} | dict.fromkeys(
            ("Learned", "BWT", "oracle Last", "own first", "two experts", "partner"), 1.0
        )
    return runs


def test_an_interval_is_that_of_students_t() -> None:
    # mean 2, deviation 1, three pairs: 4.303 / sqrt(3)
    assert interval([1.0, 2.0, 3.0]) == "+2.0 [-0.5, +4.5]"
    assert interval([1.5]) == "+1.5 (1 pairs)"
    assert interval([]) == "n/a"


def test_differences_pair_runs_of_one_order_and_seed() -> None:
    rows = {
        "dmole_alike": figures(given_0=80, given_1=90, reversed_0=70),
        "replay": figures(given_1=80, reversed_0=65, reversed_2=0),
        "joint": figures(given_0=85),
    }
    assert advantage(rows, "dmole_alike") == ""
    assert advantage(rows, "replay") == interval([10.0, 5.0])
    assert advantage(rows, "joint") == interval([-5.0, -15.0])  # one order stands for both
    assert summary_table(rows).splitlines()[2].startswith("| dmole_alike | 3 | 85.0 ± 7.1 | 70.0 |")


def test_every_row_of_the_plan_has_settings_and_a_learning_rate_of_the_search() -> None:
    for row in PLAN["rows"]:
        assert row_settings(row)["trainer"]["name"]
        assert chosen_rate(row) in PLAN["search"]["values"]
    jobs = final_jobs(["no_partner"], "reversed", [0])
    router = jobs[0].settings["model"]["router"]["init_args"]
    assert (router["partner"], len(jobs[0].configs)) == (False, 2)
    tasks = search_jobs(["replay"])[0][0].settings["data"]["tasks"]
    assert all("/val?" in task["test"] for task in tasks)
    assert CONFIG.is_file()


@pytest.mark.parametrize("part", ["summary", "rules", "pairs"])
def test_the_page_has_the_marks_of_its_tables(part: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.index(f"<!-- {part} -->") < page.index(f"<!-- end {part} -->")


def test_figures_of_a_rule_follow_from_the_scores_under_each_gate_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Data:
        training_task_names = ("a", "b")
        eval_batch_size = 2

    study = Study(module=None, data=Data())  # type: ignore[arg-type]
    orders = [
        {"a": [("a",), ("a",)], "b": [(), ("a",)]},
        {"a": [("b", "a"), ("a",)], "b": [("b",), ()]},
    ]
    scores = {("a",): 100.0, ("b",): 50.0, (): 0.0, ("b", "a"): 20.0}
    monkeypatch.setattr(study, "orders", lambda rule: iter(orders))
    monkeypatch.setattr(study, "_all", lambda task, gates: torch.full((2,), scores[gates]).numpy())
    found = study.figures({})
    assert found["Last"] == pytest.approx((60 + 25) / 2)  # a: 20 and 100; b: 50 and 0
    assert found["BWT"] == pytest.approx(60 - 100)
    assert (found["own_first"], found["rejected"], found["second_expert"]) == (50, 25, 25)
