"""Files of a stranger that try to run code, for tests that show that they do not."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dmole.cli.main import main

OLD_CONFIG = Path(__file__).resolve().parent / "run" / "old_config.yaml"
"""The config of a finished run of an earlier version."""

EVIL = {"class_path": "evil.Thing", "init_args": {"mark": "PWNED"}}
POPEN = {"class_path": "subprocess.Popen", "init_args": {"args": "touch PWNED", "shell": True}}

Change = Callable[[dict[str, Any]], object]
"""Changes the content of a config in place."""


def old_config() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(OLD_CONFIG.read_text(encoding="utf-8"))
    content.pop("ckpt_path")  # an argument of the verb
    return content


def edit_model(run: Path, key: str, value: Any) -> None:
    """Set a dotted key of ``model.json``."""
    path = run / "model.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    node = content
    *parents, last = key.split(".")
    for name in parents:
        node = node[int(name) if isinstance(node, list) else name]
    node[int(last) if isinstance(node, list) else last] = value
    path.write_text(json.dumps(content), encoding="utf-8")


def plant(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a module whose import leaves a mark importable, and return the mark's path."""
    mark = folder / "PWNED"
    source = f"open({str(mark)!r}, 'w').close()\nclass Thing:\n    pass\n"
    (folder / "evil.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    monkeypatch.chdir(folder)
    return mark


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must end with one line, and return the line."""
    capsys.readouterr()
    assert main(words) == 1
    error = capsys.readouterr().err.splitlines()
    lines = [line for line in error if line.startswith("dmole: ")]
    assert len(lines) == 1
    assert error[-1] == lines[0]
    return lines[0]
