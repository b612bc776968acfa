"""Routers side by side on the experts of a finished run, which stay as they are."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from run_digests import run_digests
from small_runs import NO_FIGURES, FitWords, Recipe, embedded, read_csv, small_task

import dmole
from dmole.allocation import PromptAllocator, UniformAllocator
from dmole.callbacks.router_comparison import RouterRow
from dmole.cli.finished import predictor_of_run
from dmole.cli.main import main
from dmole.experts import Gates
from dmole.inference.requests import Request
from dmole.publish.adapters import export_adapters
from dmole.routing import (
    AnchorRouter,
    ArrowRouter,
    CommonExpertRouter,
    CommonMixing,
    GenerativeRouter,
    KeyRouter,
    PromptRouter,
    SharedRouter,
)
from dmole.routing.comparison import ROUTERS
from dmole.run.restoring import why_unrepeatable
from dmole.storage.predictions import read_stage
from dmole.streams import BlurredStream


@pytest.fixture(autouse=True)
def quick_naming(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train the adapter that names tasks for two steps."""

    class Quick(GenerativeRouter):
        def __init__(self) -> None:
            super().__init__(exemplars=4, passes=2, step_samples=8)

    monkeypatch.setitem(ROUTERS, "mr_lora", Quick)


TASKS = [small_task(name, 32, 8) for name in ("paint", "count")]


def compare(run: Path, output: Path, *names: str, recipe: Recipe | None = None) -> list[RouterRow]:
    built = (recipe or Recipe()).build(output.parent / "none")
    return built.trainer.compare_routers(
        built.module, built.data, run=run, output=output, names=names
    )


def counts(rows: list[dict[str, str]]) -> list[tuple[str, str, str]]:
    return [(row["true_task"], row["gate_set"], row["count"]) for row in rows]


def test_all_routers_are_fitted_to_kept_embeddings_and_no_expert_changes(
    plain_run: Path, tmp_path: Path
) -> None:
    before = run_digests(plain_run)
    with embedded() as seen:
        rows = compare(plain_run, tmp_path / "out", "all")
    assert seen == []
    assert run_digests(plain_run) == before
    by_name = {row.router: row for row in rows}
    assert list(by_name) == ["run", *ROUTERS]
    assert by_name["oracle"].own_expert == 100
    assert by_name["oracle"].last == by_name["oracle"].oracle_last
    assert {row.oracle_last for row in rows} == {rows[0].oracle_last}
    assert by_name["oracle"].stored_numbers == by_name["oracle"].multiply_adds == 0
    assert by_name["mr_lora"].experts_a_sample == 1
    assert by_name["mr_lora"].stored_numbers > 1000
    assert by_name["disco"].experts_a_sample == by_name["hide"].experts_a_sample == 2
    table = read_csv(tmp_path / "out" / "routers.csv")
    assert [row["router"] for row in table] == list(by_name)
    assert (tmp_path / "out" / "routers.md").read_text().count("\n") == 2 + len(rows)


def test_the_own_router_repeated_gives_the_routing_of_the_run(
    plain_run: Path, tmp_path: Path
) -> None:
    saved, refitted = compare(plain_run, tmp_path / "out", "autoencoder")
    assert vars(saved) == vars(refitted) | {"router": "run"}
    found = read_csv(tmp_path / "out" / "routing.csv")
    of_run = [
        row
        for row in read_csv(plain_run / "routing.csv")
        if row["phase"] == "test" and row["stage"] == "2"
    ]
    for name in ("run", "autoencoder"):
        assert counts([row for row in found if row["router"] == name]) == counts(of_run)
    last = read_csv(plain_run / "evaluation_matrix.csv")[-1]
    assert saved.last == pytest.approx(sum(float(last[task]) for task in ("paint", "count")) / 2)


def test_a_run_without_experts_of_tasks_is_refused(tmp_path: Path) -> None:
    recipe = Recipe(tasks=["paint"], allocator=UniformAllocator, router=SharedRouter)
    run = recipe.build(tmp_path / "runs").fit()
    with pytest.raises(ValueError, match=r"the SharedRouter of .* selects none"):
        compare(run, tmp_path / "out", "disco", recipe=recipe)
    assert not (tmp_path / "out").exists()


def test_tasks_that_are_missing_and_wrong_names_are_refused(
    plain_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"the expert 'paint' .* has no training samples here"):
        compare(plain_run, tmp_path / "out", "disco", recipe=Recipe(tasks=["count"]))
    assert main(["evaluate", str(plain_run), "--router", "nearest"]) == 1
    assert "there is no router 'nearest'; there are disco, hide" in capsys.readouterr().err
    words = ["evaluate", str(plain_run), "--router", "disco", "--threshold_scale", "2"]
    assert main(words) == 1
    assert "--threshold_scale does not go with --router" in capsys.readouterr().err


def test_the_command_line_prints_one_table(
    quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(quick_run), "--router", "task_keys", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("|")] == [
        "router",
        "---",
        "run",
        "task_keys",
    ]


def answers(folder: Path) -> list[str]:
    tasks = read_stage(folder, 2)
    return [line["prediction"] for task in ("paint", "count") for line in tasks[task]]


@pytest.mark.slow
@pytest.mark.parametrize("router", ["AnchorRouter", "TextPrototypeRouter"])
def test_soft_gates_are_those_of_the_run_in_its_evaluation_and_when_it_is_loaded(
    router: str, tmp_path: Path, fit_words: FitWords
) -> None:
    words = ["--model.router", f"dmole.routing.{router}", "--model.router.temperature", "2.0"]
    assert main(fit_words(tmp_path, *words, *NO_FIGURES)) == 0
    run = tmp_path / "small" / "version_0"
    assert main(["evaluate", str(run), "--output", str(tmp_path / "again"), *NO_FIGURES]) == 0
    for name in ("evaluation_matrix.csv", "oracle_matrix.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()
    assert answers(tmp_path / "again") == answers(run)
    used = {row["gate_set"] for row in read_csv(run / "routing.csv") if row["stage"] == "2"}
    assert used & {"paint+count", "count+paint"}
    model, store = dmole.load(run), Recipe(tasks=TASKS).build(tmp_path / "none").data
    samples = [sample for task in TASKS for sample in store.test_samples(task.name)]
    found = model.answer([Request(sample.turns, sample.images, 4) for sample in samples])
    assert [answer.text for answer in found] == answers(run)
    predicted = predictor_of_run(run, []).answer(samples, 4)
    assert [text for text, _ in predicted] == answers(run)
    with pytest.raises(ValueError, match="weighs experts by sample, which no adapter of vLLM"):
        export_adapters(run, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_only_the_last_block_weighs_the_experts_of_an_anchor_router() -> None:
    module = Recipe(allocator=UniformAllocator, router=AnchorRouter).build(Path()).module
    last = module.backbone.last_linears
    gates = Gates(("a", "b"), torch.tensor([[0.9, 0.1], [1.0, 0.0], [1.0, 1.0]]))
    gates.average_outside(last)
    assert gates.of(last[0]) is gates
    assert gates.of("vision").weights.tolist() == [[0.5, 0.5], [1.0, 0.0], [1.0, 1.0]]


@pytest.mark.slow
def test_a_shared_expert_joins_those_that_hard_routers_choose_and_soft_ones_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def router() -> CommonExpertRouter:
        return CommonExpertRouter(KeyRouter(), CommonMixing())

    recipe = Recipe(allocator=partial(UniformAllocator, targets="mlp"), router=router)
    run = recipe.build(tmp_path / "runs").fit()
    saved, ridge, keys = compare(run, tmp_path / "out", "ridge", "task_keys", recipe=recipe)
    assert vars(keys) == vars(saved) | {"router": "task_keys"}
    assert ridge.experts_a_sample == keys.experts_a_sample == 2
    with pytest.raises(ValueError, match=r"disco: .* none that joins the shared expert 'common'"):
        compare(run, tmp_path / "soft", "disco", recipe=recipe)
    assert not (tmp_path / "soft").exists()
    with caplog.at_level("WARNING", logger="dmole"):
        rows = compare(run, tmp_path / "all", "all", recipe=recipe)
    assert [row.router for row in rows] == ["run", "autoencoder", "task_keys", "ridge", "oracle"]
    assert re.findall(r"router (\w+) is left out: ", caplog.text) == ["disco", "hide", "mr_lora"]


@pytest.mark.slow
def test_a_router_that_asks_the_model_has_routing_rates_and_no_row_is_routed_by_a_later_one(
    tmp_path: Path,
) -> None:
    tasks = ["paint", "count", "find"]
    recipe = Recipe(tasks, allocator=UniformAllocator, router=partial(GenerativeRouter, 4, 2, 8))
    built = recipe.build(tmp_path / "runs")
    run = built.fit()
    rows = [row for row in read_csv(run / "routing.csv") if row["phase"] == "test"]
    own = sum(
        int(row["count"])
        for row in rows
        if row["stage"] == "3" and row["gate_set"] == row["true_task"]
    )
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["routing"]["own_first"] == pytest.approx(100 * own / 12)
    state, router = built.trainer.sequence, built.module.router
    repeatable = [not why_unrepeatable(state, stage, router) for stage in state.plan]
    assert repeatable == [True, False, True]


@pytest.mark.slow
def test_the_newest_version_of_an_expert_answers_for_all_of_them(tmp_path: Path) -> None:
    update = replace(small_task("paint"), name="paint-v2", test=None, update=True)
    recipe = Recipe(tasks=["paint", "count", update], allocator=UniformAllocator)
    run = recipe.build(tmp_path / "runs").fit()
    rows = compare(run, tmp_path / "out", "disco", "task_keys", "oracle", recipe=recipe)
    assert rows[-1].own_expert == 100
    used = {row["gate_set"] for row in read_csv(tmp_path / "out" / "routing.csv")}
    assert not {"paint", "paint+count", "count+paint"} & used


@pytest.mark.slow
def test_a_router_that_weighs_by_token_is_not_compared(tmp_path: Path) -> None:
    recipe = Recipe(allocator=UniformAllocator, router=ArrowRouter)
    run = recipe.build(tmp_path / "runs").fit()
    with pytest.raises(ValueError, match=r"the ArrowRouter of .* weighs experts by token"):
        compare(run, tmp_path / "out", "disco", recipe=recipe)


@pytest.mark.slow
def test_a_router_is_fitted_to_what_a_blurred_stage_has_drawn(tmp_path: Path) -> None:
    recipe = Recipe(stream=BlurredStream(beta=0.5))
    run = recipe.build(tmp_path / "runs").fit()
    with embedded() as seen:
        saved, refitted = compare(run, tmp_path / "out", "autoencoder", recipe=recipe)
    assert seen == []
    assert vars(saved) == vars(refitted) | {"router": "run"}


@pytest.mark.slow
def test_soft_prompts_are_selected_and_not_weighed(tmp_path: Path) -> None:
    recipe = Recipe(allocator=lambda: PromptAllocator(tokens=2), router=PromptRouter)
    run = recipe.build(tmp_path / "runs").fit()
    assert compare(run, tmp_path / "out", "ridge", recipe=recipe)[1].experts_a_sample == 1
    with pytest.raises(ValueError, match="weighs experts, but a soft prompt has no weight"):
        compare(run, tmp_path / "soft", "disco", recipe=recipe)
    with pytest.raises(ValueError, match="an expert's form, which a soft prompt lacks"):
        compare(run, tmp_path / "soft", "mr_lora", recipe=recipe)
    assert not (tmp_path / "soft").exists()
    rows = compare(run, tmp_path / "all", "all", recipe=recipe)
    assert [row.router for row in rows] == ["run", "autoencoder", "task_keys", "ridge", "oracle"]
    module = replace(recipe, router=AnchorRouter).build(tmp_path / "none").module
    with pytest.raises(ValueError, match="weighs experts, but a soft prompt has no weight"):
        module.units()
