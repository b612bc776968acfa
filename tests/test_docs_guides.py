"""The commands and files of the guides work, on data cut to seconds."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText

from dmole.cli.main import main
from dmole.demo.tiny import TINY_PATH

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
EXAMPLES = DOCS / "examples"


def commands(page: str) -> list[list[str]]:
    """Return the words of a page's indented command lines that begin with `dmole`."""
    text = (DOCS / page).read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in re.findall(r"^ +(dmole .*)$", text, re.M)]


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text("utf-8"), re.S)


def small_tasks(tasks: list[dict[str, object]]) -> str:
    return yaml.safe_dump({"data": {"data_root": "data/real", "tasks": tasks}})


@pytest.mark.slow
def test_a_method_in_a_custom_file_trains_and_answers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # a trusted module adds folders
    request.addfinalizer(lambda: sys.modules.pop("my_method", None))
    for path in EXAMPLES.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    small = tmp_path / "two_small_tasks.yaml"
    small.write_text(re.sub(r"size=\d+", "size=8", small.read_text(encoding="utf-8")), "utf-8")
    configs = ("quickstart.yaml", "my_method.yaml", "two_small_tasks.yaml")
    trust = ("--trust_classes", "my_method")
    words = [word for name in configs for word in ("--config", name)]
    assert main(["fit", *words, *trust]) == 0
    folder = tmp_path / "runs/my_method/version_0"
    rows = (folder / "allocation.csv").read_text(encoding="utf-8").splitlines()[1:]
    chosen = [row.split(",")[3] for row in rows if row.split(",")[5] == "1"]
    assert chosen == ["vision.2", "vision.3", "language.2", "language.3"] * 2
    last = [row.split(",") for row in (folder / "routing.csv").read_text("utf-8").splitlines()[1:]]
    assert {row[2] for row in last if row[0] == "2" and row[4] == "test"} <= {
        "paint",
        "count",
        "base",
    }
    capsys.readouterr()
    assert main(["predict", str(folder), "--prompt", "name the paint", *trust]) == 0
    assert '"gate_set": ' in capsys.readouterr().out


def test_a_class_that_cannot_be_imported_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(EXAMPLES / "my_method.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["allocate", "--config", "quickstart.yaml", "--config", "my_method.yaml"]
    assert main(words) == 1
    assert "--trust_classes my_method on the command line allows it" in capsys.readouterr().err
    assert main([*words, "--trust_classes", "my_method"]) == 1
    assert "No module named 'my_method'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_custom_data_guide_leads_from_images_to_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (config,) = [block for block in blocks("guides/own_data.md", "yaml") if "tasks" in block]
    Path("mine.yaml").write_text(config, encoding="utf-8")
    lines = commands("guides/own_data.md")
    assert [words[1] for words in lines] == ["data", "data", "fit", "fit", "compare"]
    for words in lines:
        small = {"200": "16", "50": "4"} if "make-example" in words else {}
        assert main([small.get(word, word) for word in words[1:]]) == 0, words
    assert Path("runs/comparison/comparison.md").is_file()


@pytest.mark.slow
def test_a_lora_is_imported_or_merged_and_the_new_data_are_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    base = AutoModelForImageTextToText.from_pretrained(TINY_PATH)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(base, lora)
    adapted.save_pretrained("my_lora")
    expected = adapted.merge_and_unload().state_dict()
    script = str(EXAMPLES / "merge_adapter.py")
    subprocess.run([sys.executable, script, str(TINY_PATH), "my_lora", "merged"], check=True)
    merged = AutoModelForImageTextToText.from_pretrained("merged").state_dict()
    torch.testing.assert_close(merged, expected, rtol=0, atol=0)

    assert (
        main(["data", "make-example", "data/real", "--train_size", "16", "--test_size", "4"]) == 0
    )
    digit = {"name": "digit", "train": "digit_train.json", "test": "digit_test.json"}
    first = {"name": "first", "test": "color_test.json", "eval_only": True}
    Path("mine.yaml").write_text(small_tasks([digit, first]), encoding="utf-8")
    lines = commands("guides/from_a_lora.md")
    assert [words[1] for words in lines] == ["fit", "experts", "data", "fit", "evaluate"]
    data = {f"first_{split}.json": f"data/real/color_{split}.json" for split in ("train", "test")}
    for words in lines[:2]:
        known = {"BASE": str(TINY_PATH), **data}
        assert main([known.get(word, word) for word in words[1:]]) == 0, words
    experts = json.loads(Path("runs/real/dmole/version_1/experts/experts.json").read_text("utf-8"))
    assert experts == ["digit", "first"]
    shutil.rmtree("runs")
    for words in lines[2:]:
        assert main(words[1:]) == 0, words
    header, *rows = Path("runs/real/dmole/version_0/evaluation_matrix.csv").read_text().splitlines()
    assert header == "stage,digit,first"
    assert len(rows) == 2


@pytest.mark.slow
def test_the_run_of_the_live_page_is_extended_loaded_and_bundled_as_the_pages_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, config in zip(("two", "three"), blocks("live.md", "yaml"), strict=True):
        Path(f"{name}.yaml").write_text(re.sub(r"size=\d+", "size=8", config), encoding="utf-8")
    serve = commands("serve.md")
    extend = next(words for words in serve if "three.yaml" in words)
    bundle = next(words for words in serve if words[1] == "bundle")
    for words in (*commands("live.md")[:2], serve[0], extend, bundle):
        assert main(words[1:]) == 0, words
    for name in ("dmole", "quickstart"):
        metrics = json.loads(Path(f"runs/{name}/version_1/metrics.json").read_text("utf-8"))
        assert metrics["parent"]["run"] == f"{name}/version_0"
    Image.new("RGB", (64, 64), "red").save("star.png")
    capsys.readouterr()
    load, load_bundle = blocks("serve.md", "python")[:2]
    exec(load, {})
    answer = capsys.readouterr().out
    question = load.splitlines()[-1]
    exec(f"{load_bundle}\n{question}", {})
    assert capsys.readouterr().out == answer != ""
