"""The tables of docs/scaling.md are those that the command prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import scaling

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_page_holds_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    scaling.main([])
    printed = capsys.readouterr().out.strip()
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert printed in page, "make the tables again: python -m experiments.scaling"
