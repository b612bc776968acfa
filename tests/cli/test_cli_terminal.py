"""Nothing that comes from a file or a name acts on the terminal."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

from dmole.cli.lightning import _Console
from dmole.cli.main import main
from dmole.trainer import ContinualTrainer

EVIL = "\x1b]0;t\x07\x1b[31mx\u202e\u200b\x9b1m"


def test_the_log_shows_control_characters_as_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.LogRecord("dmole", logging.INFO, "f", 1, "run %s\n", (EVIL,), None)
    _Console().emit(record)
    printed = capsys.readouterr().out
    assert printed.endswith("\\n\n")
    assert printed[:-1].isprintable()


@pytest.mark.parametrize("flags", [["--json"], []])
def test_scores_of_a_file_are_printable(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    line = {"id": EVIL, "prediction": EVIL, "references": [EVIL], "prompt": EVIL}
    path.write_text(json.dumps(line))
    assert main(["score", str(path), "--metric", "exact_match", *flags]) == 0
    assert capsys.readouterr().out.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "words",
    [
        [EVIL],
        ["score", EVIL, "--metric", "exact_match"],
        ["score", "a", "--metric", EVIL],
        ["compare", EVIL],
        ["compare", "a", f"--{EVIL}"],
        ["data", EVIL],
        ["fit", "--config", EVIL],
    ],
)
def test_errors_are_one_printable_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) in (1, 2)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err[:-1].isprintable()


@pytest.mark.parametrize("name", [EVIL, "a\nb", "a\tb", "x" * 201])
def test_a_run_has_a_visible_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer.name .* must be at most 200 visible characters"):
        ContinualTrainer(name=name, default_root_dir=tmp_path)


def test_a_name_may_have_letters_of_any_script_and_spaces(tmp_path: Path) -> None:
    ContinualTrainer(name="größe 你好 (2)", default_root_dir=tmp_path, accelerator="cpu")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "prediction": "a", "references": ["a"]}')
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["score", str(path), "--metric", "exact_match"]) == 1
    message = "dmole: [Errno 28] No space left on device: 'standard output'\n"
    assert capsys.readouterr().err == message
