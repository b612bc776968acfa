"""The verb ``watch``: samples of a task that the run has learned, then prompts of none."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from dmole.cli.main import main
from dmole.cli.watch import ALARMED
from dmole.data import Task
from dmole.datamodule import ContinualDataModule

KNOWN, UNKNOWN, WINDOW = 16, 8, 8


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return JSON lines: samples that trained `paint`, then prompts without an image."""
    folder = tmp_path_factory.mktemp("traffic")
    task = Task("paint", train="synthetic://paint/train?size=32", test="synthetic://paint/test")
    lines = []
    for sample in ContinualDataModule([task]).train_samples("paint")[:KNOWN]:
        sample.images[0].load().save(folder / f"{sample.id}.png")
        text = sample.turns[0].text.replace("<image>", "").strip()
        lines.append({"prompt": text, "image": f"{sample.id}.png"})
    lines += [{"prompt": f"how do {number} birds fly?"} for number in range(UNKNOWN)]
    file = folder / "stream.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def watch(run: Path, *words: str) -> int:
    return main(["watch", str(run), "--window", str(WINDOW), *words])


def test_an_unseen_task_is_reported_once_with_its_samples(
    quick_run: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert watch(quick_run, "--input", str(prompts), "--json", "--batch_size", "5") == ALARMED
    alarm, summary = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    found: dict[str, Any] = alarm["alarm"]
    assert found["since"] == KNOWN + 1
    assert KNOWN + WINDOW // 2 <= found["position"] <= KNOWN + WINDOW // 2 + 1
    assert found["samples"] == list(range(found["since"], found["position"] + 1))
    assert found["share"] == found["rejected_in_window"] / WINDOW > 0.5
    counts = summary["summary"]
    assert counts["samples"] == KNOWN + UNKNOWN
    assert counts["rejected"] == counts["gate_sets"]["base"] >= UNKNOWN
    assert sum(counts["gate_sets"].values()) == KNOWN + UNKNOWN
    assert counts["alarms"] == 1


def test_known_traffic_raises_no_alarm(
    quick_run: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = prompts.with_name("known.jsonl")
    file.write_text("\n".join(prompts.read_text().splitlines()[:KNOWN]))
    assert watch(quick_run, "--input", str(file)) == 0
    first, *gate_sets = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{KNOWN} samples, ")
    assert first.endswith("alarms: 0")
    assert any(line.startswith("  paint") for line in gate_sets)


def test_standard_input_is_read_as_it_arrives(
    quick_run: Path,
    prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = prompts.read_text().splitlines(keepends=True)[KNOWN:]
    seen: list[str] = []

    class Pipe(io.StringIO):
        def __next__(self) -> str:
            seen.append(capsys.readouterr().out)
            return super().__next__()

    monkeypatch.setattr("sys.stdin", Pipe("".join(lines)))
    assert watch(quick_run, "--input", "-") == ALARMED
    # the alarm of the fifth sample is out before the sixth is asked for
    assert [text.partition(":")[0] for text in seen if text] == ["sample 5"]
    assert "since sample 1, 5 of the last 8 samples rejected (62%): 1-5\n" in "".join(seen)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "why?", "image": "none.png"}', "sample 2: .*none.png"),
        ('{"image": "none.png"}', "has no text under 'prompt'"),
        ('{"prompt": ', "line 2"),
    ],
)
def test_a_sample_that_cannot_be_read_is_named_in_one_line(
    quick_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    message: str,
) -> None:
    text = f'{{"prompt": "why?"}}\n{line}\n'
    file = tmp_path / "stream.jsonl"
    file.write_text(text)
    for name in (str(file), "-"):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        assert watch(quick_run, "--input", name) == 1
        (error,) = capsys.readouterr().err.splitlines()
        assert ("standard input" if name == "-" else name) in error
        assert re.search(message, error)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--window", "1"], "window must be at least 2"),
        (["--limit", "1.5"], "limit must be"),
        (["--batch_size", "-1"], "--batch_size must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused_before_the_run_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["watch", str(tmp_path / "none"), "--input", "-", *words]) == 1
    assert message in capsys.readouterr().err
