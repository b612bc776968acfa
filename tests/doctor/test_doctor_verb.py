from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from dmole.cli.main import main
from dmole.data.task import Task
from dmole.datamodule import ContinualDataModule
from dmole.demo.tiny import TINY_PATH


def question(index: int, split: str, **changes: Any) -> dict[str, Any]:
    item = {"id": f"{split}-{index}", "text": f"{split} {index} ?", "answer": f"{index}"}
    return item | {"image": f"{split}.png"} | changes


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write a task of two train and two test items, changed as told."""
    monkeypatch.chdir(tmp_path)
    Image.radial_gradient("L").resize((4, 4)).save("train.png")
    Image.linear_gradient("L").resize((4, 4)).save("test.png")
    task = {"name": "mine", "train": "train.json", "test": "test.json"}
    Path("own.yaml").write_text(yaml.safe_dump({"data": {"tasks": [task]}}))

    def write(**changes: dict[str, Any]) -> None:
        for split in ("train", "test"):
            items = [question(0, split), question(1, split, **changes.get(split, {}))]
            Path(f"{split}.json").write_text(json.dumps(items))

    return write


WORDS = ["data", "check", "--config", "quickstart.yaml", "--config", "own.yaml", "--processes", "0"]


def test_healthy_data_end_with_0(
    write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write()
    assert main(WORDS) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[-1] == "0 errors, 0 warnings"
    assert "the limit is 512" in output.out
    assert output.err == ""


def test_errors_end_with_1_and_warnings_with_0(
    write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write(train={"answer": ""})
    assert main([*WORDS, "--no_tokens"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 error, 0 warnings"
    write(test={"answer": "0"})
    assert main([*WORDS, "--no_tokens"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 errors, 1 warning"


def test_the_context_is_a_key_of_the_config(
    write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write()
    assert main([*WORDS, "--data.max_length", "3", "--limit", "1", "--json", "-"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["token_limit"] == 3
    assert report["errors"] == 4
    assert [finding["kind"] for finding in report["findings"]] == ["too_long"] * 2


def test_json_is_the_whole_report(
    write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write(train={"image": "gone.png"})
    assert main([*WORDS, "--no_tokens", "--json", "report.json"]) == 1
    assert "1 error, 0 warnings" in capsys.readouterr().out
    report = json.loads(Path("report.json").read_text())
    assert main([*WORDS, "--no_tokens", "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out) == report
    assert list(report) == [
        "format",
        "errors",
        "warnings",
        "images_decoded",
        "token_limit",
        "token_lengths_include_images",
        "tasks",
        "answer_overlap",
        "findings",
    ]
    assert report["findings"] == [
        {
            "level": "error",
            "kind": "missing_image",
            "message": "image gone.png does not exist",
            "task": "mine",
            "split": "train",
            "file": "train.json",
            "item": 1,
            "id": "train-1",
        }
    ]
    split = report["tasks"][0]["splits"]["train"]
    assert split["counts"] == {"missing_image": 1}
    assert (split["file"], split["items"], split["tokens"]) == ("train.json", 2, None)


@pytest.mark.parametrize("image_root", [None, "."])
def test_paths_are_relative_to_the_data_root(
    write: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    image_root: str | None,
) -> None:
    write()
    monkeypatch.chdir(tmp_path.parent)
    root = tmp_path.name
    words = ["data", "check", "--config", f"{root}/own.yaml", "--data.data_root", root]
    if image_root is not None:
        config = yaml.safe_load((tmp_path / "own.yaml").read_text())
        config["data"]["tasks"][0]["image_root"] = image_root
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    assert main([*words, "--processes", "0"]) == 0


def test_images_need_not_be_decoded(write: Callable[..., None]) -> None:
    write()
    Path("train.png").write_text("no image")
    assert main([*WORDS, "--no_tokens"]) == 1
    assert main([*WORDS, "--no_tokens", "--no_images"]) == 0


def test_a_config_of_the_data_alone_is_enough(
    write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write()
    assert main(["data", "check", "--config", "own.yaml", "--processes", "2"]) == 0
    assert "the limit is" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        ([], "no config is given"),
        (["--config", "nowhere.yaml"], "no config nowhere.yaml"),
        (["--config", "quickstart.yaml", "--data.batchsize", "3"], "--data.batchsize"),
        (["--config", "quickstart.yaml", "--data.batch_size", "0"], "batch_size must be at least"),
        (["--config", "quickstart.yaml", "--config", "bad.yaml"], "bad.yaml: "),
        (["--config", "quickstart.yaml", "--processes", "-1"], "--processes must be at least 0"),
        (["--config", "quickstart.yaml", "--limit", "x"], "--limit"),
        (["--config", "methods/dmole.yaml"], "data.tasks"),
        (["--config", "own.yaml", "--config", "task.yaml"], "task.yaml: "),
        (["--config", "metric.yaml"], "task 'a': unknown metric 'acuracy'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_stops_the_check_is_one_line(
    write: Callable[..., None], capsys: pytest.CaptureFixture[str], words: list[Any], culprit: str
) -> None:
    Path("task.yaml").write_text("{data: {tasks: [{name: a, trian: b}]}}")
    task = "{name: a, train: b.json, test: c.json, metric: acuracy}"
    Path("metric.yaml").write_text(f"{{data: {{tasks: [{task}]}}}}")
    Path("bad.yaml").write_text("{data: {bach_size: 3}}")
    assert main(["data", "check", *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("dmole: ")
    assert error.count("\n") == 1
    assert culprit in error


@pytest.fixture
def warnings_logged(
    write: Callable[..., None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], list[str]]:
    # the command line gives the log a handler of its own; what is caught comes from the root
    monkeypatch.setattr(logging.getLogger("dmole"), "handlers", [])
    monkeypatch.setattr(logging.getLogger("dmole"), "propagate", True)

    def logged() -> list[str]:
        caplog.clear()
        task = Task("mine", train="train.json", test="test.json")
        ContinualDataModule([task]).check()
        return caplog.messages

    return logged


def test_fit_warns_of_a_question_it_trains_on(
    write: Callable[..., None], warnings_logged: Callable[[], list[str]]
) -> None:
    write(test={"text": "train 0 ?", "image": "train.png"})
    (message,) = warnings_logged()
    assert message.startswith("task mine: 1 test samples have the image and question of a training")
    assert "'test-1'" in message


@pytest.mark.parametrize("change", [{"text": "train 0 ?"}, {"image": "train.png"}, {}])
def test_fit_does_not_warn_of_less(
    write: Callable[..., None], warnings_logged: Callable[[], list[str]], change: dict[str, Any]
) -> None:
    write(test=change)
    assert warnings_logged() == []


def test_a_template_that_reads_the_clock_is_an_error_until_a_date_is_set(
    write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write()
    folder = Path(shutil.copytree(TINY_PATH, "model"))
    template = folder / "chat_template.jinja"
    template.write_text("{{ strftime_now('%Y') }}" + template.read_text())
    backbone = "class_path: dmole.models.PretrainedBackbone, init_args: {name_or_path: model}"
    Path("model.yaml").write_text(f"{{model: {{backbone: {{{backbone}}}}}}}")
    words = ["data", "check", "--config", "own.yaml", "--config", "model.yaml", "--processes", "0"]
    assert main(words) == 1
    message = "prompts: cannot use the base model 'model': the chat template writes today's date"
    assert message in capsys.readouterr().out
    date = "--model.backbone.init_args.template_date=2026-01-03"
    assert main([*words, date]) == 0


def test_a_metric_and_images_of_the_config_are_those_of_the_check(
    write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save("test.png")
    config = yaml.safe_load(Path("own.yaml").read_text())
    metric = {"class_path": "dmole.metrics.IoU", "init_args": {"threshold": 0.3}}
    config["data"]["tasks"][0]["metric"] = metric
    Path("own.yaml").write_text(yaml.safe_dump(config))
    assert main(WORDS) == 1
    found = capsys.readouterr().out
    assert "error metric: mine test: test.json: item 0" in found
    assert "image_transparency" in found
    main([*WORDS, "--data.images.background", "white"])
    assert "image_transparency" not in capsys.readouterr().out
