"""The README's commands and its Python example are run, on data cut to seconds."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from PIL import Image

from dmole.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def shrunk(name: str) -> str:
    """Return a shipped config with two tasks of a few samples.

    Its runs draw no figures; that of the Python example does.
    """
    config = yaml.safe_load((ROOT / "configs" / name).read_text(encoding="utf-8"))
    tasks = config["data"]["tasks"][:2]
    for task in tasks:
        task["epochs"] = 1
        for split, size in (("train", 8), ("test", 2)):
            task[split] = re.sub(r"size=\d+", f"size={size}", task[split])
    config["data"]["tasks"] = tasks
    config["trainer"]["enable_progress_bar"] = False
    config["trainer"]["callbacks"].append({"class_path": "no_figures.NoFigures"})
    return yaml.safe_dump(config)


def test_the_two_first_commands_are_targets_of_the_makefile() -> None:
    commands = re.findall(r"^    (make \w+)", README, flags=re.MULTILINE)
    assert commands[:2] == ["make demo", "make test"]
    for command in commands[:2]:
        subprocess.run([*command.split(), "-n"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.slow
def test_every_command_runs_in_the_order_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart.yaml", "real.yaml"):  # a file in the working directory wins
        Path(name).write_text(shrunk(name), encoding="utf-8")
    Image.new("RGB", (64, 64), "white").save("star.png")
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    assert len(lines) >= 9
    for line in lines:
        words = shlex.split(line.replace("--train_size 1200", "--train_size 8 --test_size 2"))
        assert words[0] == "dmole"
        named = "--config" in words or words[1] == "add"  # reads the config of its run
        trust = ["--trust_classes", "no_figures"] if named else []
        if "methods/seq_ft.yaml" in words:  # it resets the callbacks
            trust.append("--trainer.callbacks+=no_figures.NoFigures")
        assert main([*words[1:], *trust]) == 0, line
    assert Path("runs/comparison/comparison.png").is_file()


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    assert "size=64" in example
    exec(compile(example.replace("size=64", "size=16"), "README.md", "exec"), {})
    assert (tmp_path / "runs/sketch/version_0/metrics.json").is_file()


def test_the_files_the_page_links_to_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
