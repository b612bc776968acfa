"""Several runs side by side: tables, their data, figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dmole.messages import show
from dmole.report.figures import save_figure
from dmole.report.grids import counterpart_grid, learning_grid, summary_grid, task_grids
from dmole.report.identity import advantages, check_comparable, check_repeat, same_tasks
from dmole.report.method_figures import method_figures
from dmole.report.notes import make_notes
from dmole.report.paired import paired_table
from dmole.report.paired_tables import (
    paired_latex,
    paired_markdown,
    paired_task_latex,
    write_paired_csv,
)
from dmole.report.runs import Run, load_run
from dmole.report.tables import (
    figures_latex,
    task_latex,
    to_markdown,
    write_summary_csv,
    write_task_csv,
)
from dmole.storage.files import atomic_path


def compare(
    run_dirs: Sequence[str | Path],
    output: str | Path,
    allow: Sequence[str] = (),
    *,
    counterparts: bool = False,
    reference: str | None = None,
) -> str:
    """Compare runs, grouped by method; runs of one method count as repeats with different seeds.

    Writes ``comparison.md``, ``.csv``, ``.tex`` and ``.png``, ``learning.csv``, ``per_task.csv``
    and ``.tex``, ``forgetting.png`` and ``accuracy_parameters.png``, and prints the Markdown.

    Args:
        run_dirs: Run folders.
        output: Folder to write to; created if missing.
        allow: Names of differences to allow, keys of `dmole.report.identity.CHECKS`.
        counterparts: Whether to add a table of the figures under the definitions of other
            libraries, with its file ``counterparts.csv``.
        reference: A method; adds tables of the paired differences of all others to it, with
            intervals, and their file ``paired.csv``. They need the predictions of the last stage.

    Returns:
        The Markdown.

    Raises:
        FileNotFoundError: If a run folder or a file in it is missing.
        ValueError: If there is no run, a run is given twice, runs are not comparable, or the
            reference is no method or cannot be paired with another.
    """
    runs = [load_run(folder) for folder in run_dirs]
    check_folders(runs)
    mixed = check_comparable(runs, allow)
    groups = group_runs(runs)
    paired = None if reference is None else paired_table(groups, reference)
    given = {method: advantages(group[0]) for method, group in groups.items()}
    apart = [method for method, texts in given.items() if texts]
    grid, learning = summary_grid(groups, apart), learning_grid(groups, apart)
    labels = {"tab:comparison": grid, "tab:learning": learning}
    if counterparts:
        labels["tab:counterparts"] = counterpart_grid(groups, apart)
    by_task = task_grids(groups, apart)
    notes = make_notes(groups, [*labels.values()], given, mixed)
    text = to_markdown(grid, [*labels.values()][1:], by_task.values(), notes)
    output = Path(output)
    figures = [figures_latex(each, label, notes) for label, each in labels.items()]
    tables = [task_latex(name, each, notes) for name, each in by_task.items()]
    (output / "paired.csv").unlink(missing_ok=True)  # left by an earlier comparison
    if paired is not None:
        text += f"\n{paired_markdown(paired, notes)}"
        figures.append(paired_latex(paired, notes))
        tables.append(paired_task_latex(paired, notes))
        write_paired_csv(output / "paired.csv", paired)
    _write(output / "comparison.md", text)
    _write(output / "comparison.tex", "\n".join(figures))
    _write(output / "per_task.tex", "\n".join(tables))
    write_summary_csv(output / "comparison.csv", grid, notes)
    write_summary_csv(output / "learning.csv", learning, notes)
    (output / "counterparts.csv").unlink(missing_ok=True)  # left by an earlier comparison
    if counterparts:
        write_summary_csv(output / "counterparts.csv", labels["tab:counterparts"], notes)
    write_task_csv(output / "per_task.csv", by_task, notes)
    for name, figure in method_figures(groups, grid, notes).items():
        (output / name).unlink(missing_ok=True)  # left by an earlier comparison
        if figure is not None:
            save_figure(figure, output / name)
    show(text)
    return text


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_folders(runs: Sequence[Run]) -> None:
    """Refuse an empty list of runs, a run given twice, or runs with different tasks.

    Raises:
        ValueError: If there is no run, a folder is given twice, or the tasks differ between runs.
    """
    if not runs:
        raise ValueError("no run to compare")
    folders = set()
    for run in runs:
        if run.folder.resolve() in folders:
            raise ValueError(f"run {run.folder} is given twice")
        same_tasks(runs[0], run)
        folders.add(run.folder.resolve())


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return runs by method, in order of appearance.

    Raises:
        ValueError: If runs of one method differ in more than their seed, or have the same seed.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        group = groups.setdefault(run.method, [])
        for other in group:
            check_repeat(other, run)
        group.append(run)
    return groups
