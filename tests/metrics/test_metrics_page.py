from __future__ import annotations

from pathlib import Path

from dmole.benchmarks.registry import GENERAL, PROFILED, RULES, benchmark_tasks

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_the_page_has_every_name_and_every_task() -> None:
    for name in (*GENERAL, *PROFILED):
        assert f"`{name}`" in PAGE, name
    for task in benchmark_tasks():
        assert task in PAGE


def test_the_page_says_of_each_rule_what_the_code_says() -> None:
    for name, rule in RULES.items():
        row = f"| `{name}` | {rule.does} | {'; '.join(rule.fixes)} | {rule.source} |"
        assert row in PAGE, name
