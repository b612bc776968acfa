from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from dmole.cli import main

ALLOCATOR = "dmole.allocation.SensitivityAllocator"


@pytest.fixture
def fault(
    fit_words: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """Run ``fit`` with a config laid over the small one and return its one line of complaint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(config: Any = None, *flags: str, text: str | None = None, run_folder=False) -> str:
        more = []
        if config is not None or text is not None:
            Path("own.yaml").write_text(yaml.safe_dump(config) if text is None else text)
            more = ["--config", "own.yaml"]
        root = tmp_path / "runs"
        assert main(fit_words(root, *more, *flags)) == 1
        assert root.exists() == run_folder
        return one_line(capsys)

    return run


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("dmole: ")
    assert error.count("\n") == 1
    assert error.endswith("\n")
    return error


def tasks(**changes: Any) -> dict[str, Any]:
    task = {
        "name": "paint",
        "train": "synthetic://paint/train?size=4",
        "test": "synthetic://paint/test?size=2",
        "max_new_tokens": 2,
    }
    return {"data": {"tasks": [task | changes]}}


def allocator(**init_args: Any) -> dict[str, Any]:
    return {"model": {"allocator": {"class_path": ALLOCATOR, "init_args": init_args}}}


# -- configs and flags -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "culprits"),
    [
        ({"model": {"rouker": 3}}, ["own.yaml", "model.rouker"]),
        ({"modle": {"alpha": 3}}, ["own.yaml", "modle.alpha"]),
        (allocator(rnk=3), ["own.yaml", ALLOCATOR, "'rnk'"]),
        (allocator(rank="abc"), ["own.yaml", '"rank"', "abc"]),
        ({"model": {"warmup": "abc"}}, ["own.yaml", "model.warmup", "abc"]),
        ({"model": {"allocator": {"class_path": "dmole.nothing.A"}}}, ["own.yaml", "nothing"]),
        (
            {"model": {"allocator": {"class_path": "dmole.routing.SharedRouter"}}},
            ["own.yaml", "model.allocator", "SharedRouter", "Allocator"],
        ),
        (tasks(trian="x"), ["own.yaml", "data.tasks", "'trian'"]),
        (tasks(epochs="many"), ["own.yaml", "data.tasks", "epochs", "many"]),
        ([1, 2], ["own.yaml must hold keys and values"]),
    ],
    ids=lambda value: value[1] if isinstance(value, list) and len(value) > 1 else "",
)
def test_a_fault_of_a_config_names_file_and_key(fault, config, culprits):
    line = fault(config)
    assert all(culprit in line for culprit in culprits), line


def test_broken_yaml_names_file_and_place(fault):
    assert "own.yaml is not YAML" in fault(text="data: {tasks: [")


@pytest.mark.parametrize(
    ("flags", "culprits"),
    [
        (["--model.rr", "3"], ["--model.rr"]),
        (["--model.warmup", "abc"], ["model.warmup", "abc"]),
        (["--trainer.max_epochs", "3"], ["--trainer.max_epochs"]),
        (["--trainer.devices", "0"], ["devices", "0"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "quickstart.yaml"]),
        (["--config"], ["--config"]),
    ],
    ids=lambda value: value[0],
)
def test_a_fault_of_a_flag_names_the_flag_and_no_file(fault, flags, culprits):
    line = fault(None, *flags)
    assert all(culprit in line for culprit in culprits), line
    assert "small.yaml" not in line


@pytest.mark.parametrize(
    ("config", "culprit"),
    [
        (allocator(budget_fraction=1.5), "budget_fraction must be in (0, 1], got 1.5"),
        (allocator(rank=0), "rank must be at least 1, got 0"),
        ({"model": {"warmup": 2.0}}, "warmup must be in [0, 1), got 2.0"),
        ({"data": {"batch_size": 0}}, "batch_size must be at least 1, got 0"),
        ({"data": {"tasks": []}}, "no task is given"),
        (tasks(name="a/b"), "task name 'a/b'"),
        (tasks(name="../a"), "task name '../a'"),
        (tasks(epochs=0), "task 'paint': epochs must be at least 1, got 0"),
        (tasks(train=None), "task 'paint' has no train data"),
        (tasks(metric="acuracy"), "task 'paint': unknown metric 'acuracy'"),
        (tasks(train="synthetic://pain/train?size=4"), "unknown generator 'pain'"),
        (tasks(train="synthetic://paint/train?size=0"), "synthetic://paint/train?size=0"),
        (tasks(train="synthetic://paint/test?size=4"), "synthetic://paint/test?size=4"),
        (tasks(train="nowhere.json"), "data file nowhere.json does not exist"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_value_that_cannot_be_is_named(fault, config, culprit):
    assert culprit in fault(config)


def test_two_tasks_of_one_name_are_refused(fault):
    twice = tasks()["data"]["tasks"] * 2
    assert "two tasks have the name 'paint'" in fault({"data": {"tasks": twice}})


def test_an_unknown_base_model_is_named(fault):
    path = {"class_path": "dmole.models.PretrainedBackbone", "init_args": {"name_or_path": "./no"}}
    assert "cannot load the base model './no'" in fault({"model": {"backbone": path}})


def test_a_run_folder_that_exists_is_not_written_to(fit_words, tmp_path, capsys):
    folder = tmp_path / "small" / "version_3"
    folder.mkdir(parents=True)
    assert main(fit_words(tmp_path, "--trainer.version", "3")) == 1
    line = one_line(capsys)
    assert f"the run folder {folder} exists" in line
    assert "trainer.version" in line
    assert list(folder.iterdir()) == []


# -- data files --------------------------------------------------------------------------------


def item(name: str = "a", **changes: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "what ?"}, {"from": "gpt", "value": "red"}]
    return {"id": name, "conversations": turns} | changes


def faulty_file(content: Any) -> dict[str, Any]:
    Path("train.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return tasks(train="train.json")


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        ({"data": []}, "train.json: must hold a list"),
        ([], "train.json: holds no items"),
        ("[{]", "train.json: broken JSON at line 1"),
        ([item(), {"id": "b"}], "train.json: item 1 (id 'b'): has neither 'conversations'"),
        ([item(), item()], "train.json: items 0 and 1 have the same id 'a'"),
        ([item(image="no.png")], "train.json: item 0 (id 'a'): image no.png does not exist"),
        ([item(image="../x.png")], "train.json: item 0 (id 'a'): image path '../x.png'"),
        ([item(image="/x.png")], "train.json: item 0 (id 'a'): image path '/x.png'"),
        (
            [item(conversations=[{"from": "human", "value": "x"}, {"from": "gpt", "value": " "}])],
            "train.json: item 0 (id 'a'): turn 1: the answer is empty",
        ),
        ([item(conversations=[])], "train.json: item 0 (id 'a'): 'conversations'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_fault_of_a_data_file_names_file_and_item(fault, content, culprit):
    assert culprit in fault(faulty_file(content))


def test_an_empty_test_file_is_refused(fault):
    Path("test.json").write_text("[]")
    assert "test.json: holds no items" in fault(tasks(test="test.json"))


def truncated_image() -> dict[str, Any]:
    Image.new("RGB", (64, 64), "red").save("a.png")
    Path("a.png").write_bytes(Path("a.png").read_bytes()[:60])
    return faulty_file([item(f"s{i}", image="a.png") for i in range(2)])


def test_a_truncated_image_is_found_before_the_run_where_images_are_verified(fault):
    line = fault(truncated_image(), "--data.verify_images", "true")
    assert "a.png" in line


def test_a_truncated_image_is_named_where_it_is_met(fault):
    # images are decoded while training: what was done before is kept
    assert "a.png" in fault(truncated_image(), run_folder=True)


def test_a_sample_that_is_too_long_is_named_with_its_length(fault):
    line = fault({"data": {"max_length": 5}}, run_folder=True)
    assert "sample 'paint-test-0-0' has" in line
    assert "more than max_length 5" in line


def test_a_training_sample_that_is_too_long_is_named_with_its_length(fault):
    long = [{"from": "human", "value": "what ? " * 300}, {"from": "gpt", "value": "red"}]
    config = faulty_file([item("ok"), item("long", conversations=long)])
    config["data"]["max_length"] = 300
    line = fault(config, run_folder=True)
    assert "sample 'long' has" in line
    assert "max_length 300" in line


# -- while it runs -----------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_its_samples_and_leaves_the_run_resumable(
    fault, fit_words, quick_run, tmp_path, capsys, digests
):
    adamw = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e30}}
    line = fault({"model": {"optimizer": adamw}}, run_folder=True)
    assert "the loss is nan at step 1 of expert 'paint'" in line
    assert "paint/train/paint-train-0-" in line
    run = tmp_path / "runs" / "small" / "version_0"
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["done"] == [[0, "evaluate"]]
    assert main(fit_words(tmp_path / "runs", "--ckpt_path", str(run))) == 0
    assert digests(run) == digests(quick_run)


def test_a_damaged_checkpoint_is_named_on_the_command_line(fault):
    Path("last.ckpt").write_bytes(b"PK\x03\x04")
    assert "cannot read checkpoint last.ckpt" in fault(None, "--ckpt_path", "last.ckpt")


# -- other verbs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["evaluate", "nowhere"], "nowhere is no run folder"),
        (["evaluate"], "run"),
        (["evaluate", "nowhere", "--split", "all"], "--split"),
        (["predict", "nowhere", "--prompt", "x"], "nowhere is no run folder"),
        (["predict", "nowhere"], "--prompt"),
        (["predict", "nowhere", "--input", "no.json"], "no.json"),
        (["compare", "nowhere"], "no run folder nowhere"),
        (["compare"], "runs"),
        (["data"], "verb"),
        (["data", "make-example"], "output"),
        (["data", "make-example", "x", "--train_size", "0"], "train_size 0"),
    ],
    ids=" ".join,
)
def test_a_fault_of_another_verb_is_one_line(tmp_path, monkeypatch, capsys, words, culprit):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    assert culprit in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_file_that_is_no_list_is_named(tmp_path, capsys, quick_run):
    path = tmp_path / "prompts.json"
    path.write_text('{"prompt": "x"}')
    assert main(["predict", str(quick_run), "--input", str(path)]) == 1
    assert "prompts.json: expected a list of prompts, got dict" in one_line(capsys)


def test_an_evaluation_does_not_write_over_a_folder(tmp_path, capsys, quick_run):
    words = ["evaluate", str(quick_run), "--output", str(tmp_path)]
    assert main(words) == 1
    assert f"{tmp_path} exists; name another output" in one_line(capsys)


def test_a_run_without_an_expert_file_is_refused(tmp_path, capsys, quick_run):
    (tmp_path / "config.yaml").write_bytes((quick_run / "config.yaml").read_bytes())
    assert main(["predict", str(tmp_path), "--prompt", "what ?"]) == 1
    assert "experts.json is missing" in one_line(capsys)


def test_missing_packages_of_the_example_are_named_with_their_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    assert main(["data", "make-example", str(tmp_path / "x")]) == 1
    line = one_line(capsys)
    assert "easy_vqa" in line
    assert "pip install dmole[examples]" in line
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_verb_lists_those_there_are(capsys):
    assert main(["train"]) == 2
    line = one_line(capsys)
    assert "no verb 'train'" in line
    assert "fit, allocate, evaluate, predict, compare, data" in line


def test_a_fault_is_raised_whole_where_a_traceback_is_wanted(monkeypatch):
    monkeypatch.setenv("DMOLE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="nowhere is no run folder"):
        main(["evaluate", "nowhere"])
