"""The routing of a run is computed again from its folder, without its base model and its data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_runs import NO_FIGURES, FitWords

from dmole.cli.main import main
from dmole.report.history import History, experts_of, read_history
from dmole.report.kept_routing import SCALES, KeptRouting
from dmole.report.page.page import render
from dmole.report.page.record import RunRecord
from dmole.run.learned import read_stages
from dmole.storage.predictions import predicted_stages, read_stage


def opened(run: Path) -> tuple[KeptRouting, History]:
    stages = predicted_stages(run)
    learned = (read_stages(run) or [])[: stages[-1]]
    final = {name: stage.index for stage in learned for name in stage.experts}
    history = read_history(((i, read_stage(run, i)) for i in reversed(stages)), final, {}, {})
    fingerprints = json.loads((run / "metrics.json").read_text())["fingerprints"]
    return KeptRouting(run, learned, fingerprints), history


def check_as_predicted(run: Path) -> None:
    """Assert that the gate sets at scale 1 are those of the predictions of the last stage."""
    kept, history = opened(run)
    assert list(history.ids)
    for task, ids in history.ids.items():
        routed = kept.routed(task, ids)
        assert routed.as_run == [experts_of(gates) for gates in history.gate_sets[task]]
        assert routed.losses.shape == (len(ids), len(kept.fitted))
        assert len(routed.orders) == len(SCALES)
        assert all(frozenset(gates) in history.known[task][name] for name, gates in
                   zip(ids, routed.as_run, strict=True))  # fmt: skip


def test_a_run_is_routed_again_as_it_was(quick_run: Path) -> None:
    check_as_predicted(quick_run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["--model.router.vote", "batch", "--data.eval_batch_size", "3"],
        ["--model.router.threshold_scale", "0.7"],
        ["--model.router.ranking", "likelihood", "--model.router.second_ratio", "2"],
        ["--config", "methods/moe_cl_routed.yaml"],
        ["--config", "methods/dmole_release.yaml"],
    ],
)
def test_another_router_is_used_by_its_own_rule(
    words: list[str], fit_words: FitWords, tmp_path: Path
) -> None:
    first, *rest = fit_words(tmp_path)
    assert main([first, *rest[:2], *words[:2], *rest[2:], *words[2:], *NO_FIGURES]) == 0
    run = tmp_path / "small" / "version_0"
    check_as_predicted(run)
    assert 'class="error"' not in render([RunRecord(run)])


@pytest.mark.slow
def test_an_updated_expert_is_own_in_all_its_versions(quick_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(quick_run, tmp_path / "small" / "version_0"))
    words = ["--update", "paint", "--train", "synthetic://paint/train?size=32&seed=5", *NO_FIGURES]
    assert main(["add", str(run), *words]) == 0
    child = tmp_path / "small" / "version_1"
    check_as_predicted(child)
    kept, history = opened(child)
    assert kept.routed("paint", history.ids["paint"]).own == ("paint-v2", "paint")


def test_embeddings_of_other_samples_are_named(quick_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(quick_run, tmp_path / "run"))
    path = run / "embeddings" / "paint.test.rows"
    shutil.copy(run / "embeddings" / "count.test.rows", path)
    kept, history = opened(run)
    with pytest.raises(ValueError, match="made with another task and another list of samples"):
        kept.routed("paint", history.ids["paint"])
    path.unlink()
    with pytest.raises(ValueError, match=f"{path} has no embedding of 8 of 8 samples"):
        kept.routed("paint", history.ids["paint"])
    assert kept.routed("count", history.ids["count"]).own == ("count",)


def test_the_page_shows_losses_thresholds_and_a_map(quick_run: Path) -> None:
    text = render([RunRecord(quick_run)])
    assert 'class="error"' not in text
    assert "paint, samples of its own task: median" in text
    assert "own expert first, thresholds times 1.00: " in text
    assert "PCA, since t-SNE needs at least 50 samples" in text
    assert text.count('<svg class="cloud"') == 2
    quick = render([RunRecord(quick_run)], costly=False)
    assert not any(f'id="{name}"' in quick for name in ("losses", "sensitivity", "map", "cases"))


def test_the_page_says_which_embeddings_are_missing(quick_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(quick_run, tmp_path / "run"))
    shutil.rmtree(run / "embeddings")
    text = render([RunRecord(run)])
    assert "Not shown: " in text
    assert "has no embedding of 8 of 8 samples" in text
    assert 'id="map"' not in text
    (run / "router" / "paint.safetensors").write_bytes(b"none")
    text = render([RunRecord(run)])
    assert text.count("router/paint.safetensors is not the file that this run has written") == 1
    assert text.count("paint.safetensors") == 2  # at the top, and once for all sections
    assert 'id="cases"' in text
