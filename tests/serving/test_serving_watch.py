"""A watching server adds the experts of new runs, each once, and survives odd folders."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from raw_requests import send
from serving_runs import Served

from dmole.cli.main import main
from dmole.inference import RoutedModel, joining
from dmole.routing import AutoencoderRouter
from dmole.serving.watch import Watcher, is_finished


def entries_of(model: RoutedModel) -> set[str]:
    """Return the experts of which the router has an entry."""
    assert isinstance(model.router, AutoencoderRouter)
    return set(model.router.tensors())


def messages_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages of dmole: the thread of the server logs its own beside them."""
    return [r.getMessage() for r in caplog.records if r.name.startswith("dmole")]


def test_a_watched_folder_adds_the_experts_of_runs_once_they_have_finished(
    server: Served, next_run: Path, run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "watched"
    shutil.copytree(run, folder / "version_0")
    new = folder / "version_1"
    shutil.copytree(next_run, new)
    metrics = json.loads((new / "metrics.json").read_text())
    unfinished = {**metrics, "per_task": {**metrics["per_task"], "later": {}}}
    (new / "metrics.json").write_text(json.dumps(unfinished))
    (folder / "notes.txt").write_text("no run")
    watcher = Watcher(server.service, folder, 60, folder / "version_0")
    assert not is_finished(new)
    asyncio.run(watcher.look())
    assert server.service.experts == ("paint", "count")
    (new / "metrics.json").write_text(json.dumps(metrics))
    asyncio.run(watcher.look())
    assert server.service.experts == ("paint", "count", "read")
    send(server, "", path="/v1/experts/read", method="DELETE")
    os.utime(new / "digests.json", (1, 1))
    asyncio.run(watcher.look())  # what was taken out stays out, also if the run has changed
    assert server.service.experts == ("paint", "count")


def test_an_edited_copy_of_the_served_run_adds_nothing(
    server: Served,
    growing: RoutedModel,
    run: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(run, tmp_path / "version_0")
    assert main(["experts", str(tmp_path / "version_0"), "rename", "paint", "color"]) == 0
    edited = tmp_path / "version_1"
    with caplog.at_level(logging.INFO, "dmole"):
        asyncio.run(Watcher(server.service, tmp_path, 60, tmp_path / "version_0").look())
    assert messages_of(caplog)[-1:] == [
        f"{edited} was made by dmole experts: its experts are not added"
    ]
    with pytest.raises(ValueError, match="has the weights of 'color' already, as expert 'paint'"):
        growing.add_expert(edited, "color")
    growing.limit_memory().unload("paint")
    with pytest.raises(ValueError, match="has the weights of 'color' already, as expert 'paint'"):
        growing.add_expert(edited, "color")
    assert growing.experts == ("paint", "count")
    assert entries_of(growing) == {"paint", "count"}


def test_an_expert_that_the_served_run_has_disabled_is_not_added(
    server: Served, next_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(next_run, tmp_path / "version_0")
    shutil.copytree(next_run, tmp_path / "version_1")
    (tmp_path / "version_0" / "disabled.json").write_text('["read"]')
    asyncio.run(Watcher(server.service, tmp_path, 60, tmp_path / "version_0").look())
    assert server.service.experts == ("paint", "count")


def test_a_run_that_cannot_be_read_is_passed_over_by_the_watcher(
    server: Served, next_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(next_run, tmp_path / "a")
    (tmp_path / "a" / "experts" / "experts.json").write_text("[")
    shutil.copytree(next_run, tmp_path / "b")
    file = tmp_path / "b" / "digests.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "stages": [3]}))
    shutil.copytree(next_run, tmp_path / "c")
    asyncio.run(Watcher(server.service, tmp_path, 60, tmp_path / "none").look())
    assert server.service.experts == ("paint", "count", "read")


def test_an_expert_that_finds_no_memory_leaves_nothing_and_the_watcher_goes_on(
    server: Served,
    growing: RoutedModel,
    next_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(next_run, tmp_path / "a")
    shutil.copytree(next_run, tmp_path / "b")
    move = joining._move
    calls: list[tuple[tuple[str, ...], set[str]]] = []

    def full_once(model: RoutedModel, name: str) -> None:
        calls.append((model.experts, entries_of(model)))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        move(model, name)

    monkeypatch.setattr(joining, "_move", full_once)
    asyncio.run(Watcher(server.service, tmp_path, 60, tmp_path / "none").look())
    assert calls == [(("paint", "count", "read"), {"paint", "count"})] * 2  # both from the start
    assert server.service.experts == ("paint", "count", "read")
    folder = tmp_path / "a"
    assert messages_of(caplog)[:1] == [f"expert read of {folder} was not added: CUDA out of memory"]
