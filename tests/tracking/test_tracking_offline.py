"""Every tracker that is installed, without a network: an interrupted run that is resumed."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def needs(package: str) -> pytest.MarkDecorator:
    """Skip a test without a package; importing it here would show warnings of its own."""
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


ENVIRONMENT = {
    "wandb": {"WANDB_MODE": "offline", "WANDB_SILENT": "true"},
    "mlflow": {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_TRACKING_URI": "file:mlruns"},
    "swanlab": {"SWANLAB_MODE": "local"},
    "trackio": {"TRACKIO_DIR": "trackio"},
}

RUN = """
import sys
from dmole import ContinualDataModule, ContinualModule, ContinualTrainer
from dmole import AutoencoderRouter, PretrainedBackbone, SensitivityAllocator, Task
from dmole.callbacks import ContinualCallback

class Stop(ContinualCallback):
    def on_stage_start(self, state, module):
        if state.stage.index == 2:
            raise ValueError("stopped on purpose")

name, resumed = sys.argv[1], sys.argv[2] == "resumed"
address = "synthetic://{}/{}?size=8"
tasks = [
    Task(n, train=address.format(n, "train"), test=address.format(n, "test"), max_new_tokens=2)
    for n in ("paint", "count")
]
module = ContinualModule(PretrainedBackbone("tiny"), SensitivityAllocator(), AutoencoderRouter())
trainer = ContinualTrainer(
    default_root_dir="runs", version=0, accelerator="cpu", enable_progress_bar=False,
    log_every_n_steps=1, report_to=["tensorboard", name], callbacks=[] if resumed else [Stop()],
)
saved = "runs/dmole/version_0" if resumed else None
trainer.fit(module, ContinualDataModule(tasks), ckpt_path=saved)
"""


def run_twice(name: str, folder: Path) -> Path:
    """Run a sequence that stops after its first stage, resume it, and return its folder."""
    environment = os.environ | ENVIRONMENT[name] | {"HOME": str(folder)}
    root = Path(__file__).parents[2]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    for part in ("first", "resumed"):
        words = [sys.executable, "-c", RUN, name, part]
        done = subprocess.run(
            words, cwd=folder, env=environment, capture_output=True, text=True, timeout=900
        )
        if part == "first":
            assert "stopped on purpose" in done.stderr
        else:
            assert done.returncode == 0, done.stderr
            assert "did not take" not in done.stderr
    return folder / "runs" / "dmole" / "version_0"


@needs("wandb")
def test_wandb_offline(tmp_path: Path) -> None:
    run_twice("wandb", tmp_path)
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len({folder.name.rpartition("-")[2] for folder in folders}) == 1  # one id
    logged = b"".join(file.read_bytes() for file in folders[-1].glob("run-*.wandb"))
    for text in (b"final/Last", b"tables/evaluation_matrix", b"figures/evaluation_matrix"):
        assert text in logged
    assert b"score/paint" in logged


@needs("mlflow")
def test_mlflow_file_store(tmp_path: Path) -> None:
    run = run_twice("mlflow", tmp_path)
    (found,) = (tmp_path / "mlruns").glob("*/*/artifacts")
    kept = {str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()}
    assert {"metrics.json", "oracle_matrix.csv", "figures/evaluation_matrix.svg"} <= kept
    assert not any(name.startswith(("checkpoints", "embeddings", "experts")) for name in kept)
    final = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["Last"]
    (line,) = (found.parent / "metrics/final/Last").read_text(encoding="utf-8").splitlines()
    assert float(line.split()[1]) == pytest.approx(final)
    assert (found.parent / "params/router").read_text(encoding="utf-8") == "AutoencoderRouter"
    steps = (found.parent / "metrics/score/paint").read_text(encoding="utf-8").splitlines()
    assert [line.split()[2] for line in steps] == ["0", "1", "2"]  # before and after the resume


@needs("swanlab")
def test_swanlab_local(tmp_path: Path) -> None:
    run_twice("swanlab", tmp_path)
    folders = sorted((tmp_path / "swanlog").glob("run-*"))
    assert len({folder.name.rpartition("-")[2] for folder in folders}) == 1  # one id
    kept = {str(file.relative_to(folders[-1])) for file in folders[-1].rglob("*")}
    assert {"files/version_0/metrics.json", "files/version_0/figures/allocation.svg"} <= kept
    assert len([name for name in kept if name.startswith("media/image/")]) == 4
    assert len([name for name in kept if name.startswith("media/echarts/")]) == 3  # tables


@needs("trackio")
def test_trackio_local(tmp_path: Path) -> None:
    run_twice("trackio", tmp_path)
    (file,) = (tmp_path / "trackio").glob("dmole*.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("select run_name, step, metrics from metrics").fetchall()
    assert len({name for name, _, _ in rows}) == 1
    logged = [(step, json.loads(content)) for _, step, content in rows]
    assert [step for step, content in logged if "score/paint" in content] == [0, 1, 2]
    (final,) = [content for _, content in logged if "final/Last" in content]
    assert {"tables/metrics", "figures/evaluation_matrix"} <= final.keys()
    assert list((tmp_path / "trackio" / "artifacts").rglob("*"))
