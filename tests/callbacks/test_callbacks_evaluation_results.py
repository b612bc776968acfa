from __future__ import annotations

from dmole.benchmarks.registry import build_metric
from dmole.callbacks.evaluation_results import unparsable_answers


def test_the_log_names_tasks_with_answers_that_no_metric_reads() -> None:
    iou = build_metric("iou").score(["left", "[0, 0, 1, 1]"], [["[0, 0, 1, 1]"]] * 2)
    exact = build_metric("exact_match").score(["red", "blue"], [["red"], ["red"]])
    assert unparsable_answers({"find": iou, "count": exact}) == "find 1 of 2"
    assert unparsable_answers({"count": exact}) == ""
