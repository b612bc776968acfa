"""A benchmark is one folder and one config: nothing else has to name it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmark_table import ADDED

from dmole.benchmarks.registry import find_benchmarks, merge_names

FOLDER = """
from dmole.benchmarks.benchmark import Benchmark, Guide, Size
from dmole.benchmarks.shared.miniature import Miniature, color, question, talk
from dmole.benchmarks.shared.rule import Rule, any_reference
from dmole.data.items import Numbered, SourceFiles
from dmole.data.layout import Layout


def shout(source: SourceFiles) -> Numbered:
    for index, item in source.items():
        yield index, item if source.split == "train" else item | {"answer": item["loud"].lower()}


def write(miniature: Miniature) -> None:
    for split, make, key in (("train", talk, None), ("test", question, "loud")):
        rows = []
        for n in miniature.numbers(split):
            image = miniature.picture("made/images", f"{split}_{n}.png", n)
            text = {key: color(n).upper()} if key else {"answer": color(n)}
            rows.append(make(n, image, "What color?", **text))
        miniature.json(f"made/{split}.json", rows)


BENCHMARK = Benchmark(
    name="made_up",
    config="made_up.yaml",
    guide=Guide("Made up", ("made/images",), ("Everything: nowhere.",), ()),
    sizes={"Colors": {"test": Size(5, "this test")}},
    formats={"made_up": Layout(items=shout, does="loud answers")},
    metrics={
        "made_up_first": Rule(
            published=any_reference(lambda text, gold: text[:1] == gold[:1]),
            corrected=any_reference(lambda text, gold: text == gold),
            does="first letter",
            fixes=("the rest counts too",),
            source="this test",
        )
    },
    miniature=write,
)
"""

CONFIG = """
data:
  tasks:
    - name: Colors
      benchmark: made_up/Colors
      format: made_up
      train: made/train.json
      test: made/test.json
      image_root: made/images
      metric: made_up_first
"""

RUN = """
import json, sys
from pathlib import Path
import dmole.benchmarks
from dmole.storage import shipped

root = Path(sys.argv[1])
dmole.benchmarks.__path__.append(str(root / "folders"))
shipped.CONFIG_ROOTS = (*shipped.CONFIG_ROOTS, root / "configs")
from dmole.cli.main import main

sys.exit(max(main(words) for words in json.loads(sys.argv[2])))
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with the folder and the config of a benchmark, and predictions for it."""
    (tmp_path / "folders" / "made_up").mkdir(parents=True)
    (tmp_path / "folders" / "made_up" / "__init__.py").write_text(FOLDER, encoding="utf-8")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "made_up.yaml").write_text(CONFIG, encoding="utf-8")
    line = {"id": "0", "prediction": "rad", "references": ["red"]}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(line), encoding="utf-8")
    return tmp_path


def run(root: Path, *verbs: list[str]) -> subprocess.CompletedProcess[str]:
    """Run verbs in a new process that finds the folder beside the package's own."""
    words = [sys.executable, "-c", RUN, str(root), json.dumps(verbs)]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_a_folder_and_a_config_are_all_that_a_benchmark_needs(root: Path) -> None:
    data, report, config = root / "data", root / "report.json", ["--config", "made_up.yaml"]
    check = ["--no_tokens", "--processes", "0", "--json", str(report)]
    ended = run(
        root,
        ["data", "init", "made_up", str(data), "--miniature"],
        ["data", "check", *config, "--data.data_root", str(data), *check],
        ["score", str(root / "predictions.jsonl"), "--task", "made_up/colors"],
    )
    assert ended.returncode == 0, ended.stderr
    guide = (data / "README.md").read_text(encoding="utf-8")
    assert "# Made up" in guide
    assert "dmole fit --config made_up.yaml" in guide
    # the miniature holds the tasks that are added after any benchmark
    assert {row.name for row in ADDED} <= {path.name for path in data.iterdir()}
    content: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    (task,) = content["tasks"]
    assert task["splits"]["test"]["answers"]["total"] == 4
    assert content["errors"] == 0
    (size,) = [each for each in content["findings"] if each["kind"] == "split_size"]
    assert size["message"] == "has 4 items; published: 5 (made_up/Colors)"
    lines = ended.stdout.splitlines()
    assert "published             100.00  (the score)" in lines
    assert "corrected             0.00" in lines


@pytest.mark.slow
def test_a_metric_of_two_benchmarks_is_refused_when_they_are_found(root: Path) -> None:
    path = root / "folders" / "made_up" / "__init__.py"
    path.write_text(FOLDER.replace('"made_up_first"', '"coin_gqa"'), encoding="utf-8")
    ended = run(root, ["data", "init", "made_up", str(root / "data")])
    assert ended.returncode == 1
    assert ended.stderr == "dmole: both coin and made_up define the metric 'coin_gqa'\n"
    assert not (root / "data").exists()


def test_two_owners_of_one_name_are_both_named() -> None:
    owners = [("coin", {"b": 1, "a": 2}), ("other", {"a": 3})]
    with pytest.raises(ValueError, match="both coin and other define the format 'a'"):
        merge_names("format", owners)
    assert list(merge_names("format", owners[:1])) == ["a", "b"]


def test_a_folder_without_a_benchmark_is_refused_and_shared_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("some_room", "some_room/shared", "some_room/other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"some_room\.other has no BENCHMARK"):
        find_benchmarks("some_room", [str(tmp_path / "some_room")])
