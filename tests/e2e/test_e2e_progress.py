"""What a run shows of its progress: bars on a terminal, else lines in the log."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from cuts import CutAfter, CutError
from lightning.pytorch.callbacks import TQDMProgressBar
from small_runs import NO_FIGURES, FitWords, Recipe, small_task

import dmole.callbacks.progress_displays as displays
from dmole.callbacks import default_callbacks
from dmole.cli.main import main

SHOWN = {"enable_progress_bar": True}
LEFT = r"~\d+ s left in stage, ~\d+ s in sequence"


def recipe(**parts: Any) -> Recipe:
    tasks = [small_task(name, epochs=2) for name in ("paint", "count")]
    return Recipe(tasks=tasks, trainer=SHOWN, **parts)


def test_without_a_terminal_lines_say_stage_phase_epoch_and_remaining_time(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(displays.StageProgressLines, "interval", 0.0)
    caplog.set_level(logging.INFO, "dmole")
    run = recipe().build(tmp_path).fit()
    text = "\n".join(caplog.messages)
    for line in (
        r"stage 0/2 zero-shot \| evaluate \| count \| ~\d+ s left in stage",
        rf"stage 1/2 paint \| train \| epoch 1/2 \| {LEFT}",
        rf"stage 1/2 paint \| train \| epoch 2/2 \| {LEFT}",
        rf"stage 2/2 count: train \({LEFT}\)",
        rf"stage 2/2 count \| train \| epoch 1/2 \| {LEFT}",
    ):
        assert re.search(f"^{line}$", text, re.MULTILINE), line
    assert caplog.messages[-8].split() == ["Last", "AVG", "BWT"]
    assert caplog.messages[-3] == f"report    {run / 'report.html'}"
    assert caplog.messages[-2].startswith("compare ")
    assert caplog.messages[-1] == f"results are in {run}"
    assert capfd.readouterr().out == ""


def test_a_resumed_run_estimates_from_the_seconds_of_its_earlier_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cut = CutAfter(6)  # in the second stage
    with pytest.raises(CutError):
        recipe(callbacks=[cut]).build(tmp_path).fit()
    caplog.set_level(logging.INFO, "dmole")
    recipe().build(tmp_path).fit(Path("last"))
    starts = [line for line in caplog.messages if "stage 2/2 count: train" in line]
    assert re.fullmatch(rf"stage 2/2 count: train \({LEFT}\)", starts[0])


def on_a_terminal(words: list[str], rich: bool) -> str:
    """Return what a command writes to a terminal of 80 columns."""
    process, terminal = pty.fork()
    if not process:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        os.environ["TERM"] = "xterm"
        displays.find_spec = lambda name: rich or None  # type: ignore[assignment]
        with os.fdopen(1, "w", closefd=False) as out, os.fdopen(2, "w", closefd=False) as err:
            sys.stdout, sys.stderr = out, err
            status = main(words)
        os._exit(status)
    written = b""
    while chunk := _read(terminal):
        written += chunk
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0, written.decode()
    return written.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the process has ended
        return b""


@pytest.mark.parametrize(
    "rich", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["rich", "tqdm"]
)
def test_a_terminal_shows_a_bar_that_fits_and_a_closing_table(
    rich: bool, tmp_path: Path, fit_words: FitWords
) -> None:
    if rich:
        pytest.importorskip("rich")
    words = fit_words(tmp_path, "--trainer.enable_progress_bar", "true", *NO_FIGURES)
    written = on_a_terminal(words, rich)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written)
    bar = r"stage 2/2 count \| train \| epoch 1/1 \| ~\d+ s, sequence ~\d+ s"
    assert re.search(bar, plain)
    bars = [line for line in re.split(r"[\r\n]+", plain) if re.search(bar, line)]
    assert max(map(len, bars)) <= 80
    table = plain[plain.index("     Last      AVG      BWT") :].splitlines()
    assert [line.split()[0] for line in table[1:]] == [
        *("routed", "oracle", "seconds", "trained", "report", "compare", "results")
    ]


def test_a_progress_bar_of_the_user_replaces_the_standard_progress() -> None:
    bar = TQDMProgressBar()
    found = default_callbacks(
        [bar], progress_bar=True, checkpoint_every_n_steps=1, case_images=0, report=False
    )
    assert [cb for cb in found if "Progress" in type(cb).__name__] == [bar]
