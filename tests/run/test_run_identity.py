"""A base model that is not the one of a run is refused by the part that differs."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from dmole.run.identity import check_base_of_run, check_parts


def part(**values: Any) -> dict[str, Any]:
    return {"sha256": str(values), "values": values}


SAVED = {
    "image processor": part(size=336),
    "generation": part(beams=1),
    "numerics": part(torch="2.1"),
}
SIZE = "another image processor: size 336 -> 448"


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(logging.getLogger("dmole"), "handlers", [])
    monkeypatch.setattr(logging.getLogger("dmole"), "propagate", True)


def test_a_fixed_part_is_refused_in_any_case() -> None:
    now = SAVED | {"image processor": part(size=448)}
    for accept in (False, True):
        with pytest.raises(ValueError, match=f"^last.ckpt was made with {SIZE}; it cannot be re"):
            check_parts(Path("last.ckpt"), SAVED, now, accept)


def test_other_parts_may_be_accepted_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    now = SAVED | {"generation": part(beams=3)}
    text = "last.ckpt was made with another generation: beams 1 -> 3"
    with pytest.raises(ValueError, match=f"^{text}; --trainer.accept_changes true"):
        check_parts(Path("last.ckpt"), SAVED, now, accept=False)
    check_parts(Path("last.ckpt"), SAVED, now, accept=True)
    assert caplog.messages == [text]


def test_what_changes_only_the_rounding_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    check_parts(Path("x"), SAVED, SAVED | {"numerics": part(torch="2.2")}, accept=False)
    assert caplog.messages == ["x was made with another numerics: torch 2.1 -> 2.2"]


def write(run: Path, content: Any) -> None:
    (run / "metrics.json").write_text(json.dumps(content))


def test_a_finished_run_is_compared_with_what_its_metrics_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, {"fingerprints": {"base": "a", "base_parts": SAVED}})
    now = SAVED | {"image processor": part(size=448)}
    with pytest.raises(ValueError, match=f"was made with {SIZE}; --trainer.accept_changes"):
        check_base_of_run(tmp_path, {"base": "a", "base_parts": now}, accept=False)
    with pytest.raises(ValueError, match="was made with a base model of other weights"):
        check_base_of_run(tmp_path, {"base": "b", "base_parts": SAVED}, accept=False)
    check_base_of_run(tmp_path, {"base": "b", "base_parts": now}, accept=True)
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(
    "content", [{}, [], {"fingerprints": 3}, {"fingerprints": {"base": "a"}}, None]
)
def test_what_an_earlier_version_did_not_record_is_not_compared(
    tmp_path: Path, content: Any
) -> None:
    if content is not None:
        write(tmp_path, content)
    check_base_of_run(tmp_path, {"base": "a", "base_parts": SAVED}, accept=False)
