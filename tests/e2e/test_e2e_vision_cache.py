"""A run that keeps outputs of the vision encoder learns and answers as one that does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file
from small_runs import Recipe, Sequenced, read_csv, small_task
from torch.testing import assert_close

import dmole
from dmole.allocation import SensitivityAllocator
from dmole.models.backbone import Backbone
from dmole.storage.predictions import predicted_stages, read_stage


def build(folder: Path, kind: str) -> Sequenced:
    tasks = [small_task("paint", epochs=2)]
    return Recipe(
        tasks,
        allocator=lambda: SensitivityAllocator(modules=["language"]),
        model={"cache_vision": kind, "cache_vision_folder": str(folder / "kept")},
    ).build(folder)


@contextmanager
def rows(backbone: Backbone) -> Iterator[list[int]]:
    """Yield a list that gets the vision rows of each pass of the vision encoder."""
    block = next(block for block in backbone.blocks if block.modality == "vision")
    seen: list[int] = []
    handle = backbone.model.get_submodule(block.path).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].shape[0])
    )
    yield seen
    handle.remove()


def fit(folder: Path, kind: str) -> tuple[Path, int]:
    """Return the run folder, and the vision rows that the run computed."""
    built = build(folder, kind)
    with rows(built.module.backbone) as seen:
        run = built.fit()
    return run, sum(seen)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    return fit(tmp_path_factory.mktemp("off"), "off")


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_plan_experts_and_answers_are_those_without_a_cache(
    kind: str, plain: tuple[Path, int], tmp_path: Path
) -> None:
    (other, computed), (run, fewer) = plain, fit(tmp_path, kind)
    assert fewer < 0.5 * computed
    for name in ("evaluation_matrix.csv", "routing.csv", "allocation.csv"):
        assert read_csv(run / name) == read_csv(other / name)
    for stage in predicted_stages(other):
        assert read_stage(run, stage) == read_stage(other, stage)
    files = sorted(path.relative_to(other) for path in other.rglob("expert*/**/*.safetensors"))
    assert files
    for file in files:
        found, expected = load_file(run / file), load_file(other / file)
        assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_a_loaded_model_keeps_images_for_later_prompts_and_processes(
    quick_run: Path, tmp_path: Path
) -> None:
    images = [Image.new("RGB", (24, 24), color) for color in ("red", "tan")]
    prompts = ["how many?", "which color?"]
    plain = dmole.load(quick_run)
    answers, routes = plain.generate(images, prompts, expert="base"), plain.route(images, prompts)
    for _ in range(2):
        model = dmole.load(quick_run, cache_vision="disk", cache_vision_folder=str(tmp_path))
        with rows(model.backbone) as seen:
            assert model.generate(images, prompts, expert="base") == answers
            assert seen  # each process computes its first batch
            seen.clear()
            assert model.generate(images[::-1], prompts, expert="base")
            found = model.route(images, prompts)
            assert not seen
        assert [route.experts for route in found] == [route.experts for route in routes]
        assert len(list(tmp_path.rglob("*.safetensors"))) == len(images)
