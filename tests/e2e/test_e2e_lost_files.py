"""Files of a run that are deleted or damaged are written again, or the run says what is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run_digests import run_digests
from small_runs import FitWords, Recipe

from dmole.allocation import UniformAllocator
from dmole.callbacks import ContinualCallback
from dmole.cli.main import main
from dmole.module import ContinualModule
from dmole.routing import SharedRouter
from dmole.run.checkpoint_file import read_checkpoint, save_checkpoint
from dmole.run.run_files import RunFiles
from dmole.run.state import SequenceState
from dmole.storage.digests import file_digest
from dmole.storage.files import write_lines
from dmole.storage.predictions import predicted_stages, predictions_file, read_stage
from dmole.streams.stream import SequentialStream


def contents(run: Path) -> dict[str, bytes]:
    """Return the content of all results that a reader of the run may need."""
    passing = ("checkpoints", "embeddings", "events.out", "timing.json", "report.html")
    found = {str(path.relative_to(run)): path for path in run.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(passing)}


def delete(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path: Path) -> None:
    """Change the content and keep size and time, as a bit flipped by a disk would."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def copied_run(plain_run: Path, tmp_path: Path) -> Path:
    """A finished run that a test may spoil."""
    return Path(shutil.copytree(plain_run, tmp_path / "runs" / "dmole" / "version_0"))


@pytest.mark.parametrize("damage", [delete, truncate, change])
def test_a_finished_run_that_is_resumed_writes_lost_files_again(
    plain_run: Path, copied_run: Path, damage: Callable[[Path], None]
) -> None:
    whole = contents(plain_run)
    for name in whole:
        damage(copied_run / name)
    assert set(contents(copied_run).items()).isdisjoint(whole.items())
    Recipe().build(copied_run.parents[1]).fit(copied_run)
    assert contents(copied_run) == whole
    assert (copied_run / "timing.json").is_file()


class Loses(ContinualCallback):
    """Deletes the run folder in the middle of a phase."""

    def __init__(self, stage: int, phase: str, part: str = ".") -> None:
        self.place = stage, phase
        self.part = part

    def _lose(self, state: SequenceState) -> None:
        if (state.stage.index, state.phase) == self.place:
            folder = state.run_dir / self.part
            assert folder.is_dir()
            shutil.rmtree(folder)

    def on_stage_start(self, state: SequenceState, module: ContinualModule) -> None:
        self._lose(state)

    def on_stage_trained(self, state: SequenceState, module: ContinualModule) -> None:
        self._lose(state)

    def on_evaluation_end(self, state: SequenceState, module: ContinualModule) -> None:
        self._lose(state)


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [
        (1, "evaluate"),
        *(
            pytest.param((stage, phase), marks=pytest.mark.slow)
            for stage, phase in [
                *((0, "evaluate"), (1, "train"), (1, "router")),
                *((2, "train"), (2, "evaluate")),
            ]
        ),
    ],
)
def test_a_run_whose_folder_is_deleted_meanwhile_ends_with_all_files(
    plain_run: Path, tmp_path: Path, place: tuple[int, str]
) -> None:
    run = Recipe(callbacks=[Loses(*place)]).build(tmp_path).fit()
    assert contents(run) == contents(plain_run)
    assert [2, "evaluate"] in read_checkpoint(run / "checkpoints" / "last.ckpt")["done"]
    assert (run / "checkpoints" / "run.lock").is_file()


SHARED = {"allocator": UniformAllocator, "router": SharedRouter}


def shared(*callbacks: ContinualCallback) -> Recipe:
    return Recipe(stream=SequentialStream("shared"), callbacks=callbacks, **SHARED)


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose second stage trains the expert of the first one further."""
    return shared().build(tmp_path_factory.mktemp("shared")).fit()


@pytest.mark.slow
def test_predictions_of_an_expert_that_has_changed_since_are_named(
    shared_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(shared_run, tmp_path / "dmole" / "version_0"))
    shutil.rmtree(run / "predictions")
    shutil.rmtree(run / "experts")
    with pytest.raises(ValueError, match=r"version_0 lacks predictions/stage_1\.jsonl: the"):
        shared().build(tmp_path).fit(run)
    lost = {"predictions/stage_1.jsonl"}
    whole = contents(shared_run)
    assert contents(run) == {name: text for name, text in whole.items() if name not in lost}


@pytest.mark.slow
def test_predictions_that_are_lost_before_their_expert_changes_are_written_again(
    shared_run: Path, tmp_path: Path
) -> None:
    run = shared(Loses(1, "evaluate", "predictions")).build(tmp_path).fit()
    assert contents(run) == contents(shared_run)


def test_a_process_killed_while_it_restores_files_loses_nothing(
    plain_run: Path, copied_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: RunFiles, run: Path, stages: object, files: list[object]) -> None:
        raise KeyboardInterrupt

    shutil.rmtree(copied_run / "experts")
    (copied_run / "router" / "paint.safetensors").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(RunFiles, "put", killed)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            Recipe().build(copied_run.parents[1]).fit(copied_run)
    assert not (copied_run / "experts").exists()
    Recipe().build(copied_run.parents[1]).fit(copied_run)
    assert contents(copied_run) == contents(plain_run)


@pytest.mark.parametrize("damaged", [False, True])
def test_predictions_by_stage_and_task_of_earlier_versions_are_joined(
    plain_run: Path, copied_run: Path, damaged: bool
) -> None:
    file = copied_run / "checkpoints" / "last.ckpt"
    content = read_checkpoint(file)
    digests, earlier = content["files"]["digests"], []
    for stage in predicted_stages(copied_run):
        for task, lines in read_stage(copied_run, stage).items():
            path = copied_run / "predictions" / f"stage_{stage}" / f"{task}.jsonl"
            write_lines(path, lines)
            name = str(path.relative_to(copied_run))
            digests[name] = {name: file_digest(path)}
            earlier.append(name)
        (copied_run / predictions_file(stage)).unlink()
        del digests[predictions_file(stage)]
    save_checkpoint(content, file)
    assert read_stage(copied_run, 1) == read_stage(plain_run, 1)
    if damaged:
        change(copied_run / earlier[-1])
    Recipe().build(copied_run.parents[1]).fit(copied_run)
    found = contents(copied_run)
    assert {k: v for k, v in found.items() if k not in earlier} == contents(plain_run)


def downgrade(run: Path) -> None:
    """Make a run one of format 3, which has no digests."""
    file = run / "checkpoints" / "last.ckpt"
    content = read_checkpoint(file)
    del content["files"]
    for state in content["sequence"].values():
        state.pop("metrics", None)
    torch.save(content | {"format": 3}, file)
    (run / "digests.json").unlink()


def test_a_run_of_format_3_is_resumed_and_completed(plain_run: Path, copied_run: Path) -> None:
    downgrade(copied_run)
    shutil.rmtree(copied_run / "experts")
    (copied_run / "metrics.json").unlink()
    (copied_run / "predictions" / "stage_1.jsonl").unlink()
    Recipe().build(copied_run.parents[1]).fit(copied_run)
    assert contents(copied_run) == contents(plain_run)


@pytest.mark.slow
def test_the_command_line_writes_config_and_figures_again(
    fit_words: FitWords, quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(quick_run, tmp_path / "small" / "version_0"))
    shutil.rmtree(run / "figures")
    (run / "config.yaml").unlink()
    assert main(fit_words(tmp_path, "--ckpt_path", "auto")) == 0
    text = capsys.readouterr()
    assert "written again: " in text.out + text.err
    ours, theirs = contents(run), contents(quick_run)
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} <= {"config.yaml"}
    assert run_digests(run) == run_digests(quick_run)
