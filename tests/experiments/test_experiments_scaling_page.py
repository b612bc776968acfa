"""The tables of docs/scaling.md are those that the command prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import scaling
from experiments.costs.scaling import Load

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_holds_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    scaling.main([])
    printed = capsys.readouterr().out.strip()
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert printed in page, "make the tables again: python -m experiments.scaling"


def test_a_larger_batch_needs_more_but_no_larger_experts() -> None:
    small, large = (scaling.report(Load(batch=batch)) for batch in (4, 8))
    rows = [
        next(line for line in text.splitlines() if line.startswith("| LLaVA-1.5-7B")).split(" | ")
        for text in (small, large)
    ]
    assert rows[0][1:5] == rows[1][1:5]  # parameters, weights, experts, their state
    assert all(float(a) < float(b) for a, b in zip(rows[0][5:8], rows[1][5:8], strict=True))
