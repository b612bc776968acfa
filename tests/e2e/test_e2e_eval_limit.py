"""A run that is evaluated on a part of the test samples says so wherever its scores are."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_runs import Recipe, small_task

from dmole.cli.main import main
from dmole.metrics import read_matrix
from dmole.storage.predictions import predicted_stages, read_stage

TASKS = ("paint", small_task("count", test_size=3))


def recipe(limit: int | None = 3, seed: int = 0) -> Recipe:
    return Recipe(TASKS, data={"eval_limit": limit}, seed=seed)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run on three of the test samples of each task, and what it logged."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("dmole").addHandler(handler)
    run = recipe().build(tmp_path_factory.mktemp("drawn")).fit()
    logging.getLogger("dmole").removeHandler(handler)
    return run, "\n".join(lines)


def test_every_stage_has_the_same_samples_and_all_results_say_so(drawn: tuple[Path, str]) -> None:
    run, log = drawn
    ids = [
        {task: [line["id"] for line in lines] for task, lines in read_stage(run, stage).items()}
        for stage in predicted_stages(run)
    ]
    assert ids == [ids[0]] * 3
    assert {task: len(found) for task, found in ids[0].items()} == {"paint": 3, "count": 3}
    for name in ("evaluation_matrix.csv", "oracle_matrix.csv"):
        assert (run / name).read_text().startswith("stage (eval_limit 3),paint,count\n")
    matrix, _ = read_matrix(run / "evaluation_matrix.csv")
    stated = json.loads((run / "metrics.json").read_text())["subsample"]
    assert stated["test_samples"] == {"paint": [3, 4], "count": [3, 3]}
    assert (stated["eval_limit"], stated["seed"]) == (3, 0)
    assert stated["standard_error"]["count"] == [0.0] * 3  # all of its samples were scored
    shares = matrix[:, 0] / 100.0
    expected = 100.0 * np.sqrt(shares * (1 - shares) * 3 / 2 / 3 * (1 - 3 / 4))
    np.testing.assert_allclose(stated["standard_error"]["paint"], expected)
    assert ("±" in log) == bool(expected.any())


def test_it_is_not_resumed_with_another_draw(drawn: tuple[Path, str], tmp_path: Path) -> None:
    for limit, seed in ((2, 0), (None, 0)):
        with pytest.raises(ValueError, match="was made with another eval_limit; it cannot be res"):
            recipe(limit, seed).build(tmp_path).fit(drawn[0])


def test_it_is_compared_with_a_full_run_only_if_that_is_allowed(
    drawn: tuple[Path, str], plain_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--output", str(tmp_path / "comparison")]
    for run, name in ((drawn[0], "drawn"), (plain_run, "full")):
        words.append(str(shutil.copytree(run, tmp_path / name)))
        (tmp_path / name / "config.yaml").write_text(f"trainer: {{name: {name}}}\n")
    assert main([*words, "--allow", "data"]) == 1
    refused = capsys.readouterr().err
    assert "scored (eval_limit): at most 3 a task and all; --allow eval_limit compares" in refused
    assert main([*words, "--allow", "eval_limit,data"]) == 0
    text = capsys.readouterr().out
    assert "Allowed difference: " in text
    assert "Scored on a part of the test samples" in text


@pytest.mark.parametrize("name", ["eval_limit", "eval_tokens_per_batch"])
def test_a_limit_below_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        Recipe(data={name: 0}).build(Path())


def test_it_is_evaluated_again_on_the_same_samples(drawn: tuple[Path, str], tmp_path: Path) -> None:
    built, output = recipe().build(tmp_path / "none"), tmp_path / "again"
    built.trainer.evaluate(built.module, built.data, run=drawn[0], output=output)
    for name in ("evaluation_matrix.csv", "predictions/stage_2.jsonl"):
        assert (output / name).read_bytes() == (drawn[0] / name).read_bytes()
    stated = [json.loads((run / "metrics.json").read_text()) for run in (output, drawn[0])]
    assert stated[0]["subsample"] == stated[1]["subsample"]
