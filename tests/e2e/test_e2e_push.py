"""A run is published on a hub that runs in the test, fetched from there and loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import TOKEN, Hub, serve_hub

from dmole.cli.main import main

PROGRAM = """
import json, sys
import dmole
from dmole.cli.main import main
from dmole.inference import make_request

run, again, out = sys.argv[1:]
dmole.load(run).generate(prompt="how many?")
lightning = "lightning" in sys.modules
assert main(["push", run, "org/paint-and-count", "--private", "--license", "mit"]) == 0
assert main(["bundle", run, again]) == 0
assert main(["push", again, "org/paint-and-count"]) == 0
found = dmole.load("hf://org/paint-and-count")
requests = [make_request("how many?"), make_request("name the paint")]
same = found.answer(requests) == dmole.load(run).answer(requests)
errors = []
for address in ("org/paint-and-count@none", "org/other", "org/no-bundle"):
    try:
        dmole.load("hf://" + address)
    except ValueError as error:
        errors.append(str(error))
open(out, "w").write(json.dumps({"same": same, "errors": errors, "lightning": lightning}))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serve_hub() as hub:
        yield hub


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return an environment in which the hub's library knows no token and has no cache."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return {**kept, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **more}


@pytest.mark.slow
def test_a_run_answers_without_lightning_and_as_before_when_it_is_loaded_from_the_hub(
    quick_run: Path, hub: Hub, tmp_path: Path
) -> None:
    hub.repositories["org/no-bundle"] = {"model.json": b"{}"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, quick_run, tmp_path / "again", tmp_path / "out.json"],
        env=environment(tmp_path / "hf", HF_ENDPOINT=hub.address, HF_TOKEN=TOKEN),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["lightning"] is False  # loading a run and answering do without it
    assert found["same"] is True
    assert found["errors"] == [
        "hf://org/paint-and-count@none: there is no such revision",
        "hf://org/other: there is no such repository, or it is private and needs a token",
        "hf://org/no-bundle is no bundle of dmole: it has no bundle.json",
    ]
    addresses = done.stdout.split()
    assert addresses[-1] == f"hf://org/paint-and-count@{hub.revision('org/paint-and-count')}"
    files = hub.repositories["org/paint-and-count"]
    assert {"README.md", "bundle.json", "router/router.json", "experts/experts.json"} <= set(files)
    assert str(quick_run.parents[2]).encode() not in b"".join(files.values())
    assert hub.private == {"org/paint-and-count"}


@pytest.mark.parametrize(
    ("setting", "token", "message"),
    [
        ({"HF_HUB_OFFLINE": True}, TOKEN, "cannot publish org/new: the hub is switched off"),
        ({"ENDPOINT": "http://127.0.0.1:9"}, TOKEN, "cannot publish org/new: the hub is unreach"),
        ({}, "", "there is no token of the hub"),
        ({}, "hf_wrong", "cannot publish org/new: "),
    ],
    ids=["offline", "unreachable", "without token", "wrong token"],
)
def test_a_push_that_fails_says_why_in_one_line(
    quick_run: Path,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    setting: dict[str, Any],
    token: str,
    message: str,
) -> None:
    constants = "huggingface_hub.constants."
    files = {"HF_TOKEN_PATH": str(tmp_path / "none"), "ENDPOINT": hub.address}
    for key, value in (files | setting).items():
        monkeypatch.setattr(constants + key, value)
    monkeypatch.setenv("HF_TOKEN", token)
    assert main(["push", str(quick_run), "org/new"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dmole: {message}")
    assert "org/new" not in hub.repositories


def test_a_public_repository_is_not_taken_for_a_private_one(
    quick_run: Path,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.repositories["org/public"] = files = {"README.md": b"hello"}
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["push", str(quick_run), "org/public", "--private"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "dmole: cannot publish org/public: the repository is there and public; push without "
        "--private"
    )
    assert files == {"README.md": b"hello"}


def test_a_name_of_another_form_and_a_card_of_a_bundle_are_refused(
    quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bundle", str(quick_run), str(tmp_path / "bundle")]) == 0
    for words, message in [
        ([str(quick_run), "name"], "must be named org/name, got 'name'"),
        ([str(tmp_path / "bundle"), "org/name", "--license", "mit"], "whose README.md has"),
        ([str(tmp_path), "org/name"], "is no run folder"),
    ]:
        capsys.readouterr()
        assert main(["push", *words]) == 1
        assert message in capsys.readouterr().err
