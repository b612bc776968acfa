"""Run folders of a stranger: `predict` and `evaluate` build nothing that the files name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from strangers import EVIL, POPEN, plant, refused

from dmole.cli.main import main

Change = Callable[[dict[str, Any]], object]


def edit(run: Path, change: Change) -> None:
    """Change ``model.json``, or ``config.yaml`` of a run that has none."""
    path = run / "model.json"
    if path.exists():
        content = json.loads(path.read_text(encoding="utf-8"))
    else:
        path = run / "config.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def run(quick_run: Path, tmp_path: Path) -> Path:
    """Copy of a finished run."""
    unused = shutil.ignore_patterns("events*", "figures", "checkpoints", "predictions")
    return shutil.copytree(quick_run, tmp_path / "run", ignore=unused)


@pytest.fixture
def old_run(run: Path) -> Path:
    """Copy of a finished run, as an earlier version left it."""
    (run / "model.json").unlink()
    (run / "digests.json").unlink()
    return run


def test_a_run_that_has_lost_its_settings_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (run / "model.json").unlink()
    line = refused(["predict", "run", "--prompt", "x"], capsys)
    assert "run/model.json" in line


def test_settings_that_were_edited_by_hand_are_refused_and_a_flag_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    edit(run, lambda c: c.update(seed=5))
    line = refused(["predict", "run", "--prompt", "x"], capsys)
    assert "run/model.json is not the file that this run has written" in line
    assert "change a setting of a run with a flag" in line


def hostile(config: dict[str, Any]) -> None:
    """Name foreign classes wherever a config of ``fit`` may."""
    config["trainer"] |= {"plugins": [POPEN, EVIL], "loggers": [EVIL], "strategy": EVIL}
    config["trainer"] |= {"callbacks": [EVIL, POPEN], "profiler": EVIL}
    config["model"] |= {"optimizer": POPEN, "allocator": EVIL, "regularizers": [EVIL]}
    config |= {"optimizer": EVIL, "lr_scheduler": POPEN}


def test_an_old_run_answers_without_anything_else_that_its_config_names(
    old_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["predict", str(old_run), "--prompt", "what ?"]
    assert main(words) == 0
    expected = capsys.readouterr().out
    mark = plant(tmp_path, monkeypatch)
    edit(old_run, hostile)
    assert main(words) == 0
    assert capsys.readouterr().out == expected
    assert not mark.exists()


def test_the_config_of_a_new_run_is_not_read(
    run: Path,
    quick_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mark = plant(tmp_path, monkeypatch)
    (run / "config.yaml").write_text("a: !!python/object/apply:os.mkdir [PWNED]", encoding="utf-8")
    outputs = []
    for folder in (run, quick_run):
        assert main(["predict", str(folder), "--prompt", "what ?"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert not mark.exists()


GATE = {"class_path": "dmole.routing.TokenRouter", "init_args": {"gate": EVIL}}
CHANGES: list[tuple[str, Change, str]] = [
    ("backbone", lambda c: c["model"].update(backbone=EVIL), "model.backbone.class_path"),
    ("router", lambda c: c["model"].update(router=POPEN), "model.router.class_path"),
    ("gate", lambda c: c["model"].update(router=GATE), "router.init_args.gate.class_path"),
    ("stream", lambda c: c["trainer"].update(stream=EVIL), "trainer.stream.class_path"),
    ("metric", lambda c: c["data"]["tasks"][0].update(metric=EVIL), "data.tasks.0.metric"),
    (
        "any",
        lambda c: c["model"]["backbone"]["init_args"].update(image_settings={"a": [{"b": POPEN}]}),
        "image_settings.a.0.b.class_path",
    ),
    (
        "remote code",
        lambda c: c["model"]["backbone"]["init_args"].update(trust_remote_code="yes"),
        "trust_remote_code",
    ),
]


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
@pytest.mark.parametrize(("change", "key"), [pytest.param(*row, id=name) for name, *row in CHANGES])
def test_a_run_that_names_foreign_code_is_refused_in_one_line(
    old_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    change: Change,
    key: str,
) -> None:
    mark = plant(tmp_path, monkeypatch)
    edit(old_run, change)
    line = refused([verb, "run", *(["--prompt", "x"] if verb == "predict" else [])], capsys)
    assert "run/config.yaml" in line
    assert key in line
    assert not mark.exists()
    assert not list(tmp_path.glob("run/evaluation*_test*"))


def test_a_flag_confirms_what_a_run_may_not_set(
    old_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(old_run, lambda c: c["model"]["backbone"]["init_args"].update(trust_remote_code=True))
    words = ["predict", str(old_run), "--prompt", "what ?"]
    line = refused([*words, "--data.data_root", "trust_remote_code"], capsys)
    assert "--model.backbone.init_args.trust_remote_code true" in line
    assert main([*words, "--model.backbone.init_args.trust_remote_code", "true"]) == 0


def test_a_flag_may_not_name_foreign_code_either(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = plant(tmp_path, monkeypatch)
    words = ["predict", str(run), "--prompt", "x", "--model.router", "evil.Thing"]
    assert "--trust_classes evil" in refused(words, capsys)
    assert not mark.exists()


def test_a_value_out_of_range_is_named_with_its_file(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(run, lambda c: c["model"]["router"]["settings"].update(quantile=7))
    line = refused(["predict", str(run), "--prompt", "x"], capsys)
    assert "run/model.json: quantile must be in [0, 1]" in line


def test_compare_builds_nothing_that_a_config_names(
    quick_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mark = plant(tmp_path, monkeypatch)
    folder = shutil.copytree(quick_run, tmp_path / "run", ignore=shutil.ignore_patterns("figures"))
    content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    hostile(content)
    (folder / "config.yaml").write_text(json.dumps(content), encoding="utf-8")
    assert main(["compare", "run", "--output", "compared"]) == 0
    assert not mark.exists()
