"""The run folder says which experts each training sample used."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import pytest
from cuts import CutAfter, CutError
from run_digests import run_digests
from small_runs import Recipe, read_csv, small_task

from dmole.routing import AutoencoderRouter
from dmole.storage.files import read_json

TASKS = ("paint", "count")
ALWAYS = partial(AutoencoderRouter, threshold_scale=1e6)
NEVER = partial(AutoencoderRouter, partner=False)
EPOCHS = 2


def recipe(router: partial[AutoencoderRouter], **parts: object) -> Recipe:
    tasks = [small_task(name, train_size=10, epochs=EPOCHS) for name in TASKS]
    return Recipe(tasks=tasks, router=router, **parts)  # type: ignore[arg-type]


def trained(run: Path) -> list[tuple[str, str, str, int]]:
    rows = [row for row in read_csv(run / "routing.csv") if row["phase"] == "train"]
    return [(r["stage"], r["true_task"], r["gate_set"], int(r["count"])) for r in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("router", "gate_set", "rate", "said"),
    [
        (ALWAYS, "count+paint", 100.0, "expert count: 20 samples trained with paint"),
        pytest.param(
            NEVER,
            *("count", 0.0, "expert count: 20 samples trained with no partner"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["always", "never"],
)
def test_each_sample_counts_once_an_epoch_with_its_partner(
    router: partial[AutoencoderRouter],
    gate_set: str,
    rate: float,
    said: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="dmole"):
        run = recipe(router).build(tmp_path).fit()
    # 10 samples in batches of 4: the sampler repeats two, which train nothing and do not count
    assert trained(run) == [("1", "paint", "paint", 20), ("2", "count", gate_set, 20)]
    assert read_json(run / "metrics.json")["routing"]["trained_with_partner"] == rate
    assert said in caplog.text


@pytest.mark.slow
def test_a_stage_that_was_cut_counts_every_sample_once(tmp_path: Path) -> None:
    whole = recipe(ALWAYS, trainer={"checkpoint_every_n_steps": 1}).build(tmp_path / "a").fit()
    cut = recipe(ALWAYS, callbacks=[CutAfter(9)], trainer={"checkpoint_every_n_steps": 1}).build(
        tmp_path / "b"
    )
    with pytest.raises(CutError):
        cut.fit()
    run = cut.trainer.run_dir
    recipe(ALWAYS, trainer={"checkpoint_every_n_steps": 1}).build(tmp_path / "b").fit(run)
    assert trained(run) == trained(whole)
    assert run_digests(run)["routing.csv"] == run_digests(whole)["routing.csv"]
