"""The verb ``plan``, and ``fit --dry_memory``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dmole.cli.main import main
from dmole.cli.plan import split_dry_memory


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_plan_is_printed_and_written_and_nothing_is_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", "quickstart.yaml", "--gpu", "l4-24gb", "--devices", "2"]
    assert main(["plan", *words, "--json", "plan.json"]) == 0
    text = capsys.readouterr().out
    assert "GPUs        2 x l4-24gb, 21.6 GiB usable" in text
    assert "DOES NOT FIT" not in text
    assert [path.name for path in folder.iterdir()] == ["plan.json"]
    plan = json.loads((folder / "plan.json").read_text())
    assert (plan["fits"], plan["gpus"], plan["experts"], plan["advice"]) == (True, 2, 5, [])
    for phase in ("proxy pass", "training step", "evaluation", "embedding", "router fit"):
        parts = plan["gpu_memory"][phase]
        assert parts["total"] == pytest.approx(sum(parts.values()) - parts["total"])
    assert set(plan["hours"]) == {"train", "proxy", "embed", "prompts", "decode"}


def test_fit_with_dry_memory_is_the_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", "quickstart.yaml", "--memory_gib", "0.1"]
    assert main(["plan", *words]) == 1
    planned = capsys.readouterr().out
    assert main(["fit", "--dry_memory", *words]) == 1
    assert capsys.readouterr().out == planned
    assert "evaluation: data.eval_batch_size" in planned.partition("to change, best first")[2]
    assert list(folder.iterdir()) == []


def test_a_config_may_name_the_strategy_that_also_decodes_in_shards(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strategy = "{class_path: dmole.strategies.ShardedBaseStrategy, init_args: {%s}}"
    found = []
    for arguments in ("gather_for_evaluation: false", ""):
        (folder / "own.yaml").write_text(f"trainer: {{strategy: {strategy % arguments}}}\n")
        words = ["--config", "quickstart.yaml", "--config", "own.yaml", "--devices", "4"]
        assert main(["plan", *words, "--json", "plan.json"]) == 0
        memory = json.loads((folder / "plan.json").read_text())["gpu_memory"]
        found.append(memory["evaluation"]["gathered"] / (4 * 2_269_184))
    assert found[0] < 0.4  # two blocks and the head of a tiny model
    assert found[1] > 0.9


def test_the_flag_takes_a_value_or_none() -> None:
    assert split_dry_memory(["fit", "--dry_memory", "--seed", "1"]) == (
        True,
        ["fit", "--seed", "1"],
    )
    assert split_dry_memory(["fit", "--dry_memory", "true"]) == (True, ["fit"])
    assert split_dry_memory(["fit", "--dry_memory=false"]) == (False, ["fit"])
    with pytest.raises(ValueError, match="--dry_memory must be true or false, got 'maybe'"):
        split_dry_memory(["fit", "--dry_memory=maybe"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no config is given: plan --config FILE"),
        (["--config", "quickstart.yaml", "--gpu", "k80"], "--gpu k80 is not known; there are"),
        (["--config", "quickstart.yaml", "--patches", "9"], "--patches and --image_tokens go"),
        (["--config", "smollm2.yaml"], "the shape of ./data/smollm2 is not known here"),
        (["--config", "quickstart.yaml", "--data.batchsize", "4"], "batchsize"),
        (["--config", "quickstart.yaml", "--data.batch_size", "0"], "data.batch_size must be at"),
        (
            ["--config", "quickstart.yaml", "--model.past_experts_on_device", "-1"],
            "model.past_experts_on_device must not be negative, got -1",
        ),
        (["--config", "a.yaml", "--memory_gib", "nan"], "--memory_gib: must be a positive number"),
        (["--config", "a.yaml", "--devices", "auto"], "--devices: must be an integer of at least"),
    ],
)
def test_errors_are_one_line(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dmole: ")]
    assert len(error) == 1
    assert message in error[0]
