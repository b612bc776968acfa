"""Exported tasks hold the samples of dmole, its images and its scores."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import datasets
import pytest
import yaml
from PIL import Image

from dmole.benchmarks.init import init_benchmark
from dmole.benchmarks.registry import BENCHMARKS, build_metric
from dmole.cli.main import main
from dmole.data import Task
from dmole.data.decoding import ImageOptions
from dmole.datamodule import ContinualDataModule
from dmole.harness.tasks import export_tasks
from dmole.metrics import ExactMatch


def documents(folder: Path, task: str) -> list[dict[str, Any]]:
    """Return the rows as lmms-eval reads them."""
    path = str(folder / "data" / task)
    return list(datasets.load_dataset(path, cache_dir=str(folder / "cache"))["test"])


def functions(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("exported_utils", folder / "utils.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Loader(yaml.SafeLoader):
    """Reads the name of a function as text."""


_Loader.add_constructor("!function", lambda loader, node: node.value)


def config(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.load((folder / f"{name}.yaml").read_text(), _Loader)
    return content


def test_a_document_has_the_prompt_and_the_pixels_that_dmole_reads(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (3, 2), (255, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    picture.save(tmp_path / "a.png", exif=exif)
    (tmp_path / "test.json").write_text(
        '[{"id": "7", "image": "a.png", "question": "what?", "answer": ["red", "crimson"]}]'
    )
    treated = ImageOptions("white", apply_exif=True)
    path = str(tmp_path / "test.json")
    data = ContinualDataModule(
        [Task("color", train=path, test=path, images=treated, max_new_tokens=3)]
    )
    assert export_tasks(data, tmp_path / "out", prefix="mine") == ["mine_color"]
    (sample,) = data.test_samples("color")
    (document,) = documents(tmp_path / "out", "color")
    utils = functions(tmp_path / "out")
    (message,) = utils.doc_to_messages(document)
    shown, asked = message["content"]
    assert shown["url"].tobytes() == sample.images[0].load().tobytes()
    assert (shown["url"].size, shown["url"].getpixel((0, 0))) == ((2, 3), (255, 255, 255))
    assert asked == {"type": "text", "text": "what?"}
    assert utils.doc_to_text(document) == "what?"
    assert utils.doc_to_target(document) == "red"
    task = config(tmp_path / "out", "mine_color")
    assert task["generation_kwargs"]["max_new_tokens"] == 3
    assert [each["metric"] for each in task["metric_list"]] == ["score"]
    group = config(tmp_path / "out", "mine_all")
    assert group == {"group": "mine_all", "task": ["mine_color"]}


@pytest.mark.parametrize("benchmark", ["coin", pytest.param("ucit", marks=pytest.mark.slow)])
def test_a_published_benchmark_scores_as_in_dmole_under_both_profiles(
    benchmark: str, tmp_path: Path
) -> None:
    init_benchmark(benchmark, tmp_path / "data", miniature=True)
    tasks = []
    for settings in BENCHMARKS[benchmark].tasks():
        known = {key: settings[key] for key in settings if key in Task.__dataclass_fields__}
        tasks.append(Task(**known))
    data = ContinualDataModule(tasks, data_root=str(tmp_path / "data"))
    export_tasks(data, tmp_path / "out")
    utils = functions(tmp_path / "out")
    differ = []
    for task in tasks:
        samples = data.test_samples(task.name)
        answers = [f"It is {sample.references[0]}." for sample in samples]
        answers[1:] = [sample.references[0] for sample in samples[1:]]
        answers[-1] = ""
        expected = build_metric(task.metric).score(
            answers, [s.references for s in samples], [s.metadata for s in samples]
        )
        rows = documents(tmp_path / "out", task.name)
        scored = [
            utils.process_results(row, [text]) for row, text in zip(rows, answers, strict=True)
        ]
        names = [
            each["metric"] for each in config(tmp_path / "out", f"dmole_{task.name}")["metric_list"]
        ]
        found = {n: getattr(utils, _aggregation(n))([each[n] for each in scored]) for n in names}
        profiles = {name: each.value for name, each in expected.profiles.items()}
        assert found == (profiles or {"score": expected.value}), task.name
        differ.append(len(set(found.values())) > 1)
    assert any(differ)  # or the test could not tell the profiles apart


def _aggregation(name: str) -> str:
    return "aggregate" if name == "score" else f"aggregate_{name}"


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    address = "synthetic://count/{}?size=2"
    task = Task("count", train=address.format("train"), test=address.format("test"))
    plain = ContinualDataModule([task])
    special = ContinualDataModule([replace(task, metric=ExactMatch())])
    with pytest.raises(ValueError, match="task 'count': its metric is configured by a class_path"):
        export_tasks(special, tmp_path / "out")
    with pytest.raises(ValueError, match="task 'all' has the name of the group"):
        export_tasks(ContinualDataModule([replace(task, name="all")]), tmp_path / "out")
    with pytest.raises(ValueError, match=r"prefix '\.\./x' must be letters"):
        export_tasks(plain, tmp_path / "out", prefix="../x")
    assert not (tmp_path / "out").exists()
    export_tasks(plain, tmp_path / "out")
    with pytest.raises(ValueError, match="out exists"):
        export_tasks(plain, tmp_path / "out")


def test_a_prompt_that_lmms_eval_changes_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    path = tmp_path / "test.json"
    turns = [{"from": "human", "value": "see <image> why?"}, {"from": "gpt", "value": "x"}]
    path.write_text(json.dumps([{"id": "7", "image": "a.png", "conversations": turns}]))
    data = ContinualDataModule([Task("color", train=str(path), test=str(path))])
    export_tasks(data, tmp_path / "out")
    assert "task 'color': 1 prompts have an image in a line with text" in caplog.text


def test_the_verb_needs_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "export-tasks", str(tmp_path / "out")]) == 1
    assert (
        "no config is given: dmole data export-tasks OUT --config FILE" in capsys.readouterr().err
    )
