"""The results of finished runs, kept under docs/results/kept without experts and checkpoints.

A kept folder holds what `dmole compare` reads, so tables can be made again and extended on another
machine: `dmole compare docs/results/kept/*/version_*`.
"""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import yaml

from dmole.storage.files import atomic_path, write_lines
from dmole.storage.predictions import predicted_stages, predictions_file, read_stage, stage_lines
from experiments.results_jobs import MARK, OUTPUT, ROOT, Job

COMMIT = "commit.txt"
"""File with the commit of the code that made the results."""
KEPT = OUTPUT / "kept"
FILES = (
    *("evaluation_matrix.csv", "oracle_matrix.csv"),
    *("metrics.json", "timing.json", "digests.json"),
)


def kept_folder(job: Job, kept: Path = KEPT) -> Path:
    """Return the folder with the results of a run."""
    return job.folder(kept)


def is_kept(job: Job, kept: Path = KEPT) -> bool:
    """Return whether results of a run with the settings of the job are kept."""
    mark = kept_folder(job, kept) / MARK
    return mark.is_file() and mark.read_text(encoding="utf-8") == job.digest


def keep(job: Job, runs: Path, kept: Path = KEPT) -> None:
    """Copy the results of a finished run, without settings of this run and machine."""
    source, folder = job.folder(runs), kept_folder(job, kept)
    shutil.rmtree(folder, ignore_errors=True)  # of other settings
    folder.mkdir(parents=True)
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    _keep_scores(source, folder)
    (folder / COMMIT).write_text(f"{current_commit()}\n", encoding="utf-8")
    config = yaml.safe_load((source / "config.yaml").read_text(encoding="utf-8"))
    config["ckpt_path"] = None
    config["trainer"] |= {"default_root_dir": "runs", "version": None}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    with atomic_path(folder / MARK) as temporary:  # last, as it states that all are there
        temporary.write_text(job.digest, encoding="utf-8")


def current_commit() -> str:
    """Return the short hash of the commit that is checked out, marked if code has changed.

    "unknown" outside a git repository.
    """
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if found.returncode:
        return "unknown"
    code = ["dmole", "configs"]
    same = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *code]).returncode == 0
    return found.stdout.strip() + ("" if same else " with changes")


def commits(folders: Iterable[Path]) -> str:
    """Return a sentence that names the commits of the code of kept results."""
    files = [folder / COMMIT for folder in folders]
    known = [file.read_text(encoding="utf-8").strip() for file in files if file.is_file()]
    counts = {f"commit {name}": count for name, count in Counter(known).items()}
    if missing := len(files) - len(known):
        counts["commit not recorded"] = missing
    of_runs = (f"{what} ({n} run{'s' if n > 1 else ''})" for what, n in counts.items())
    return f"Code: {', '.join(of_runs)}."


def _keep_scores(source: Path, folder: Path) -> None:
    """Keep the score of each sample after the last stage, without prompts and answers."""
    stages = predicted_stages(source)
    if not stages:
        return
    short = {
        task: [{"id": line["id"], "score": line["score"]} for line in lines]
        for task, lines in read_stage(source, stages[-1]).items()
    }
    file = folder / predictions_file(stages[-1])
    file.parent.mkdir(exist_ok=True)
    write_lines(file, stage_lines(short))
