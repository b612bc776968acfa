"""Dotted paths of before a move still work, and say where the class is now."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path

import pytest

from dmole._moved import MOVED, NAMES, current_module
from dmole.cli.lightning import ContinualCLI
from dmole.streams import ReplayStream


@pytest.mark.parametrize("old", [*MOVED, "dmole.reliability.signals", "dmole.data.synthetic.tasks"])
def test_an_old_path_is_the_module_at_its_new_place(
    old: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("dmole"), "propagate", True)
    sys.modules.pop(old, None)
    assert importlib.import_module(old) is importlib.import_module(current_module(old))
    said = {record.message.split(";")[0] for record in caplog.records}
    assert f"{old} is now {current_module(old)}" in said
    spec = importlib.import_module(current_module(old)).__spec__
    assert spec is not None
    assert spec.name == current_module(old)


@pytest.mark.parametrize("old", NAMES)
def test_a_name_that_left_a_module_is_found_where_it_is_now(
    old: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("dmole"), "propagate", True)
    module, _, name = old.rpartition(".")
    home, _, current = NAMES[old].rpartition(".")
    moved = getattr(importlib.import_module(module), name)
    assert moved is getattr(importlib.import_module(home), current)
    assert moved.__module__ == home
    said = {record.message.split(";")[0] for record in caplog.records}
    assert said == {f"{old} is now {NAMES[old]}"}


def test_a_name_that_never_was_in_a_module_is_refused_as_ever() -> None:
    with pytest.raises(AttributeError, match=r"module 'dmole\.metrics' has no attribute 'Acuracy'"):
        getattr(importlib.import_module("dmole.metrics"), "Acuracy")  # noqa: B009


def test_a_config_may_name_a_class_by_its_old_path_and_the_run_keeps_the_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("dmole"), "propagate", True)
    config = tmp_path / "old.yaml"
    config.write_text(
        "trainer:\n  stream:\n    class_path: dmole.data.stream.ReplayStream\n"
        "    init_args: {buffer_size: 4}\n",
        encoding="utf-8",
    )
    sys.modules.pop("dmole.data.stream", None)
    quickstart = str(Path(__file__).parents[1] / "configs" / "quickstart.yaml")
    cli = ContinualCLI(["--config", quickstart, "--config", str(config)], run=False)
    assert type(cli.trainer.sequence.stream) is ReplayStream
    printed = caplog.text
    assert printed.count("dmole.data.stream is now dmole.streams.stream") >= 1
    kept = cli.parser.dump(cli.config)
    assert "class_path: dmole.streams.stream.ReplayStream" in kept
    assert "dmole.data.stream" not in kept
