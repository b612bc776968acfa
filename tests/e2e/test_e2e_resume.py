from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cuts import CutAt, CutError
from run_digests import run_digests
from small_runs import NO_FIGURES, FitWords, Recipe

from dmole.allocation import SensitivityAllocator, UniformAllocator
from dmole.cli.main import main
from dmole.data import Task
from dmole.models import Backbone
from dmole.routing import AutoencoderRouter, SharedRouter
from dmole.run.checkpoint_file import read_checkpoint, save_checkpoint
from dmole.run.settings import task_settings
from dmole.storage.predictions import read_stage
from dmole.streams.stream import SequentialStream

PLACES = [(1, "router"), (2, "train")]
MORE_PLACES = [(1, "train"), (1, "evaluate"), (2, "router"), (2, "evaluate")]


def interrupted(folder: Path, stage: int, phase: str) -> Path:
    sequence = Recipe(callbacks=[CutAt(stage, phase)]).build(folder)
    with pytest.raises(CutError):
        sequence.fit()
    return sequence.trainer.run_dir


@pytest.fixture
def copied_run(plain_run: Path, tmp_path: Path) -> Path:
    """A finished run that a test may spoil."""
    return Path(shutil.copytree(plain_run, tmp_path / "runs" / "dmole" / "version_0"))


@pytest.mark.parametrize(
    ("stage", "phase"),
    [*PLACES, *(pytest.param(*place, marks=pytest.mark.slow) for place in MORE_PLACES)],
)
def test_a_run_cut_in_any_phase_ends_as_if_it_had_not_been(
    plain_run: Path, tmp_path: Path, stage: int, phase: str
) -> None:
    run = interrupted(tmp_path, stage, phase)
    done = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["done"]
    assert [stage, phase] not in done
    torch.manual_seed(99)  # a new process has drawn other numbers
    resumed = Recipe().build(tmp_path).fit(run)
    assert resumed == run
    assert list(run.parent.iterdir()) == [run]
    assert run_digests(run) == run_digests(plain_run)
    ours, theirs = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in (run, plain_run)
    )
    for part in ("progress", "done", "versions", "parameters"):  # steps and epochs continue too
        assert ours[part] == theirs[part], part


@pytest.mark.slow
def test_an_expert_that_continues_to_train_is_resumed_from_its_last_whole_stage(
    tmp_path: Path,
) -> None:
    parts = {"allocator": UniformAllocator, "router": SharedRouter}
    whole = Recipe(stream=SequentialStream("shared"), **parts).build(tmp_path / "whole").fit()
    cut = Recipe(stream=SequentialStream("shared"), callbacks=[CutAt(2, "train")], **parts)
    sequence = cut.build(tmp_path / "cut")
    with pytest.raises(CutError):
        sequence.fit()
    run = sequence.trainer.run_dir
    Recipe(stream=SequentialStream("shared"), **parts).build(tmp_path / "cut").fit(run)
    assert run_digests(run) == run_digests(whole)


def test_resuming_a_finished_run_changes_nothing(copied_run: Path, plain_run: Path) -> None:
    Recipe().build(copied_run.parents[1]).fit(copied_run)
    assert run_digests(copied_run) == run_digests(plain_run)


def test_the_command_line_resumes_in_the_folder_of_the_run(
    fit_words: FitWords, quick_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "small" / "version_0"
    shutil.copytree(quick_run, run)
    assert main(fit_words(tmp_path, "--ckpt_path", str(run))) == 0
    assert list(run.parent.iterdir()) == [run]
    assert run_digests(run) == run_digests(quick_run)


def test_a_run_of_other_data_is_not_resumed(copied_run: Path, tmp_path: Path) -> None:
    longer = Task(
        "count", train="synthetic://count/train?size=9", test="synthetic://count/test?size=4"
    )
    other = Recipe(tasks=["paint", longer]).build(tmp_path)
    with pytest.raises(ValueError, match=r"was made with another data of count; it cannot be"):
        other.fit(copied_run)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("repeat", 2),
        ("prompt", "{question} Be brief."),
        ("format", "choices"),
        ("test_image_root", "elsewhere"),
        ("max_new_tokens", 4),
    ],
)
def test_a_run_of_a_task_with_another_setting_is_not_resumed(
    copied_run: Path, tmp_path: Path, key: str, value: int | str
) -> None:
    before = Recipe().build(tmp_path).data.task("count")
    other = Recipe(tasks=["paint", replace(before, **{key: value})]).build(tmp_path)
    with pytest.raises(ValueError, match=f"another {key} of task count, which can no"):
        other.fit(copied_run)


def test_side_files_are_a_setting_whatever_their_order() -> None:
    def setting(**files: str) -> str:
        return task_settings(Task("t", side_files=files))["side_files of task t"]

    assert setting(a="1", b="2") == setting(b="2", a="1")
    assert setting(a="1", b="2") != setting(a="1", b="3")


def test_a_run_of_other_order_is_not_resumed(copied_run: Path, tmp_path: Path) -> None:
    other = Recipe(tasks=["count", "paint"]).build(tmp_path)
    with pytest.raises(ValueError, match="was made with another order of stages"):
        other.fit(copied_run)


def test_a_run_on_another_base_model_is_not_resumed(copied_run: Path, tmp_path: Path) -> None:
    other = Recipe().build(tmp_path)
    with torch.no_grad():
        next(other.module.backbone.model.parameters()).add_(1.0)
    with pytest.raises(ValueError, match="was made with another base model"):
        other.fit(copied_run)


def test_a_run_with_another_router_is_not_resumed(copied_run: Path, tmp_path: Path) -> None:
    other = Recipe(router=SharedRouter).build(tmp_path)
    with pytest.raises(ValueError, match="router"):
        other.fit(copied_run)


@pytest.mark.parametrize("length", [0, 100, 20_000])
def test_a_truncated_checkpoint_is_refused_in_one_line(
    copied_run: Path, tmp_path: Path, length: int
) -> None:
    file = copied_run / "checkpoints" / "last.ckpt"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"^cannot read checkpoint .*last\.ckpt: .") as caught:
        Recipe().build(tmp_path).fit(copied_run)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_something_else_is_refused(copied_run: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, copied_run / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match=r"last\.ckpt is not a checkpoint of a sequence"):
        Recipe().build(tmp_path).fit(copied_run)


@pytest.mark.parametrize("phase", [[9, "train"], [0, "train"], [1, "x"], ["1", "train"]])
def test_a_phase_that_the_run_does_not_have_is_named(
    copied_run: Path, tmp_path: Path, phase: list[Any]
) -> None:
    file = copied_run / "checkpoints" / "last.ckpt"
    content = read_checkpoint(file)
    save_checkpoint({**content, "done": [*content["done"], phase]}, file)
    with pytest.raises(ValueError, match=r"last\.ckpt: the run has no phase \("):
        Recipe().build(tmp_path).fit(copied_run)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no checkpoint .*nowhere"):
        Recipe().build(tmp_path).fit(tmp_path / "nowhere")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_its_samples_and_leaves_the_run_resumable(
    fit_words: FitWords, quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adamw = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e30}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"model": {"optimizer": adamw}}))
    own = ["--config", str(tmp_path / "own.yaml")]
    assert main(fit_words(tmp_path / "runs", *own, *NO_FIGURES)) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert "the loss is nan at step 1 of expert 'paint'" in line
    assert "paint/train/paint-train-0-" in line
    run = tmp_path / "runs" / "small" / "version_0"
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["done"] == [[0, "evaluate"]]
    words = fit_words(tmp_path / "runs", "--ckpt_path", str(run), *NO_FIGURES)
    assert main(words) == 1
    assert "was made with another setting 'optimizer'; trainer.accept_changes" in (
        capsys.readouterr().err
    )
    assert main([*words, "--trainer.accept_changes", "true"]) == 0
    assert "resuming with another setting 'optimizer'" in capsys.readouterr().err
    ours, theirs = run_digests(run), run_digests(quick_run)
    # which names the accepted change
    assert {name for name in ours if ours[name] != theirs[name]} == {"metrics.json"}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"model": {"dropout": 0.3}}, "setting 'dropout'"),
        ({"model": {"warmup": 0.3}}, "model setting 'warmup'"),
        ({"curriculum": "online"}, "Curriculum setting 'mode'"),
        ({"trainer": {"gradient_clip_val": 0.5}}, "setting 'trainer.gradient_clip_val'"),
        ({"data": {"group_by_length": False}}, "setting 'data.group_by_length'"),
        ({"data": {"max_length": 90}}, "setting 'data.max_length'"),
        ({"allocator": lambda: SensitivityAllocator(rank=2)}, "allocator setting 'rank'"),
        ({"allocator": lambda: SensitivityAllocator(start="closest")}, "allocator setting 'start'"),
        ({"router": lambda: AutoencoderRouter(components=3)}, "router setting '.*components'"),
        ({"router": lambda: AutoencoderRouter(threshold_scale=2.0)}, "router setting 'threshold"),
        ({"router": lambda: AutoencoderRouter(ranking="relative")}, "router setting 'ranking'"),
        ({"router": lambda: AutoencoderRouter(ranking="likelihood")}, "router setting 'ranking'"),
    ],
)
def test_a_setting_that_changes_the_numbers_is_named(
    copied_run: Path, tmp_path: Path, change: dict[str, Any], name: str
) -> None:
    other = Recipe(**change).build(tmp_path)
    with pytest.raises(ValueError, match=f"was made with another {name}.*can no longer take"):
        other.fit(copied_run)


def shrink_images(backbone: Backbone) -> None:
    backbone.processor.image_processor.size = {"height": 64, "width": 48}


def edit_template(backbone: Backbone) -> None:
    assert backbone.template is not None
    backbone.template += " "


def test_a_checkpoint_from_before_a_setting_is_resumed(copied_run: Path, plain_run: Path) -> None:
    file = copied_run / "checkpoints" / "last.ckpt"
    content = read_checkpoint(file)
    later = ("start'", "start_samples'", "ranking'", "covariance_components'")
    kept = {key: text for key, text in content["settings"].items() if not key.endswith(later)}
    assert len(kept) == len(content["settings"]) - len(later)
    save_checkpoint({**content, "settings": kept}, file)
    Recipe().build(copied_run.parents[1]).fit(copied_run)
    assert run_digests(copied_run) == run_digests(plain_run)
    other = Recipe(router=lambda: AutoencoderRouter(ranking="likelihood"))
    save_checkpoint({**content, "settings": kept}, file)
    with pytest.raises(ValueError, match="another router setting 'ranking'"):
        other.build(copied_run.parents[1]).fit(copied_run)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (shrink_images, "another image processor: size.width 64 -> 48"),
        (edit_template, "another chat template"),
    ],
)
def test_a_base_model_whose_folder_changed_is_refused_by_the_part(
    copied_run: Path, tmp_path: Path, change: Callable[[Backbone], None], text: str
) -> None:
    other = Recipe(trainer={"accept_changes": True}).build(tmp_path)
    change(other.module.backbone)
    with pytest.raises(ValueError, match=f"was made with {text}; it cannot be resumed here"):
        other.fit(copied_run)


def test_other_settings_of_generation_are_refused_and_answers_are_made_again(
    copied_run: Path, tmp_path: Path
) -> None:
    change = {"model": {"generation": {"suppress_tokens": list(range(6, 700))}}}
    with pytest.raises(ValueError, match="was made with another generation: suppress_tokens none"):
        Recipe(**change).build(tmp_path).fit(copied_run)
    before = answers(copied_run, 2)
    accepted = Recipe(**change, trainer={"accept_changes": True}).build(tmp_path)
    drop_phase(copied_run, [2, "evaluate"])
    accepted.fit(copied_run)
    assert [new == old for new, old in zip(answers(copied_run, 2), before, strict=True)] == (
        [False] * len(before)
    )


def answers(run: Path, stage: int) -> list[str]:
    return [line["prediction"] for lines in read_stage(run, stage).values() for line in lines]


def drop_phase(run: Path, phase: list[Any]) -> None:
    path = run / "checkpoints" / "last.ckpt"
    content = read_checkpoint(path)
    content["done"].remove(phase)
    save_checkpoint(content, path)


def test_settings_without_effect_may_change(
    copied_run: Path, plain_run: Path, tmp_path: Path
) -> None:
    other = Recipe(
        data={"num_workers": 1, "eval_batch_size": 3}, trainer={"checkpoint_every_n_steps": 7}
    )
    other.build(tmp_path).fit(copied_run)
    assert run_digests(copied_run) == run_digests(plain_run)


def test_another_version_of_the_code_is_reported_and_the_run_resumes(
    fit_words: FitWords, quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "small" / "version_0"
    shutil.copytree(quick_run, run)
    file = run / "checkpoints" / "last.ckpt"
    save_checkpoint(read_checkpoint(file) | {"code": "0.0.1"}, file)
    assert main(fit_words(tmp_path, "--ckpt_path", "last")) == 0
    assert "last.ckpt was made by dmole 0.0.1, this is" in capsys.readouterr().err
    assert run_digests(run) == run_digests(quick_run)
