"""The embeddings in a run folder: no sample is embedded twice, and no other result changes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from cuts import CutAfter, CutError
from run_digests import run_digests
from small_runs import Recipe, Sequenced, embedded, small_task

from dmole.callbacks.router_fitting import RouterFitting
from dmole.run.embeddings import FOLDER


def files(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / FOLDER).iterdir())}


def evaluate(run: Path, output: Path, recipe: Recipe | None = None) -> list[str]:
    """Evaluate a run and return the samples that were embedded."""
    built = (recipe or Recipe()).build(output.parent / "none")
    with embedded() as seen:
        built.trainer.evaluate(built.module, built.data, run=run, output=output)
    return seen


def test_a_run_embeds_each_sample_once_with_and_without_files_and_its_evaluation_none(
    plain_run: Path, tmp_path: Path
) -> None:
    with embedded() as seen:
        run = Recipe(trainer={"keep_embeddings": False}).build(tmp_path).fit()
    assert len(seen) == len(set(seen)) == 2 * (8 + 4)
    assert not (run / FOLDER).exists()
    assert run_digests(run) == run_digests(plain_run)
    names = {f"{task}.{split}.rows" for task in ("paint", "count") for split in ("train", "test")}
    assert set(files(plain_run)) == names
    assert evaluate(plain_run, tmp_path / "again") == []
    assert not (tmp_path / "again" / FOLDER).exists()
    assert len(evaluate(run, tmp_path / "none")) == 8
    for name in ("evaluation_matrix.csv", "routing.csv"):
        again, none = ((tmp_path / folder / name).read_bytes() for folder in ("again", "none"))
        assert again == none
    matrix = "evaluation_matrix.csv"
    assert (run / matrix).read_bytes() == (tmp_path / "again" / matrix).read_bytes()


def test_a_resumed_run_embeds_no_sample_of_its_finished_steps_again(tmp_path: Path) -> None:
    def build(*callbacks: Any) -> Sequenced:
        tasks = ["paint", small_task("count", epochs=2)]
        fitting = RouterFitting(embedding_samples=4)  # the others are embedded in the steps
        saving = {"checkpoint_every_n_steps": 1}
        return Recipe(tasks, callbacks=[fitting, *callbacks], trainer=saving).build(tmp_path)

    with embedded() as seen, pytest.raises(CutError):
        build(CutAfter(step=5)).fit()
    assert len(seen) == len(set(seen)) == 2 * 4 + 4 + 8
    with embedded() as seen:
        build().fit(tmp_path / "dmole" / "version_0")
    assert seen == []


def test_a_damaged_file_is_made_again_and_others_are_read(
    plain_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Path(shutil.copytree(plain_run, tmp_path / "run"))
    path = run / FOLDER / "paint.test.rows"
    path.write_bytes(path.read_bytes()[:-4] + b"oops")
    other = run / FOLDER / "count.test.rows"
    other.write_bytes(path.read_bytes())
    before = files(run)
    assert set(evaluate(run, tmp_path / "again")) == {
        f"{task}/test/{task}-test-0-{i}" for task in ("paint", "count") for i in range(4)
    }
    assert f"{path} has damaged rows" in caplog.text
    assert f"{other} was made with another list of samples and another task" in caplog.text
    assert files(run) == before  # a finished run is only read
    name = "evaluation_matrix.csv"
    assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()


def test_an_evaluation_of_other_samples_or_another_base_embeds_them(
    plain_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = ["paint", small_task("count", test_size=5)]
    seen = evaluate(plain_run, tmp_path / "samples", Recipe(tasks=tasks))
    assert seen == [f"count/test/count-test-0-{i}" for i in range(5)]
    monkeypatch.setattr(
        "dmole.models.identity._numerics", lambda backbone: {"torch": "another version"}
    )
    assert len(evaluate(plain_run, tmp_path / "base")) == 8


@pytest.mark.slow
def test_a_full_disk_ends_the_keeping_and_not_the_run(
    plain_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "dmole" / "version_0").mkdir(parents=True)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "a.rows")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dmole.storage.rows.RowFile.add", fail)
        run = Recipe().build(tmp_path).fit()
    assert caplog.text.count("embeddings are no longer kept on disk") == 1
    assert run_digests(run) == run_digests(plain_run)
