"""Tables of a comparison as Markdown, LaTeX and CSV, with definitions of their numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from dmole.messages import one_line
from dmole.report.grids import Grid, Pair, shown
from dmole.report.notes import Notes, definition_lines, statements
from dmole.storage.files import write_csv

OF_A_TASK = "Per task: the figure before the mean over tasks; n/a where it does not apply."


# -- Markdown ----------------------------------------------------------------------------------

_SPECIAL = re.compile(
    r"([\\`|*~]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])"
    r"|:(?=//)|(?<=www)\.|(?<=[\w.+-])@(?=\w))"
)
"""Characters that begin code, a cell, emphasis, a tag, an entity or the address of a link.

GitHub also makes links of ``https://``, ``www.`` and mail addresses without further marks.
"""


def escape_markdown(text: str) -> str:
    r"""Return a text that Markdown shows literally: no markup, HTML or link, one visible line.

    Example:
        >>> escape_markdown("a|b <script>")
        'a\\|b \\<script>'
    """
    return _SPECIAL.sub(r"\\\1", one_line(text))


def markdown_grid(grid: Grid, notes: Notes) -> str:
    """Return the table alone."""
    header = ["method", "runs", *map(escape_markdown, grid.columns)]
    lines = [" | ".join(header), " | ".join(["---", *["---:"] * (len(header) - 1)])]
    for method in (*grid.rows, *grid.references):
        cells = _cells(grid, method, "{} ± {}", lambda text: f"**{text}**")
        name = escape_markdown(method) + notes.sign(method)
        lines.append(" | ".join([name, str(notes.runs.get(method, "")), *cells]))
    return "".join(f"| {line} |\n" for line in lines)


def to_markdown(
    grid: Grid, further: Iterable[Grid], task_grids: Iterable[Grid], notes: Notes
) -> str:
    """Return all tables, with notes below the first and each definition where it is first used.

    Args:
        grid: The first table.
        further: Tables whose columns are figures.
        task_grids: Tables whose columns are tasks.
        notes: The text around the numbers.
    """
    figures, by_task = list(further), list(task_grids)
    lines = statements(notes, bold=any(each.best for each in (grid, *figures, *by_task)))
    parts = [
        markdown_grid(grid, notes),
        "".join(f"{escape_markdown(line)}  \n" for line in lines),
        _markdown_list(definition_lines(notes, grid.columns)),
    ]
    defined = set(grid.columns)
    for each in figures:
        names = [name for name in each.columns if name not in defined]
        parts += [_titled(each, notes), _markdown_list(definition_lines(notes, names))]
        defined.update(names)
    parts += [_titled(each, notes) for each in by_task]
    return "\n".join([*(part for part in parts if part), OF_A_TASK + "\n"])


def _titled(grid: Grid, notes: Notes) -> str:
    return f"### {grid.title}\n\n{markdown_grid(grid, notes)}"


def _markdown_list(lines: Iterable[str]) -> str:
    return "".join(f"- {escape_markdown(line)}\n" for line in lines)


def _cells(grid: Grid, method: str, both: str, bold: Callable[[str], str]) -> list[str]:
    """Return the cells of a row; ``both`` joins mean and standard deviation."""
    texts = []
    for name in grid.columns:
        text = _cell(*grid.row(method)[name], both=both, whole=name in grid.whole)
        texts.append(bold(text) if (method, name) in grid.best else text)
    return texts


def _cell(mean: float, spread: float, *, both: str, whole: bool) -> str:
    if math.isnan(mean):
        return "n/a"
    text = shown(mean, whole=whole)
    if math.isnan(spread) or (whole and round(spread) == 0):
        return text
    return both.format(text, shown(spread, whole=whole))


# -- LaTeX -------------------------------------------------------------------------------------

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': r"\char`\"{}",
    "-": "-{}",  # two hyphens would become a dash
    "[": "{[}",  # would be an argument of the preceding end of row
    "]": "{]}",
    "*": "{*}",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "§": r"\S{}",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def escape_latex(text: str) -> str:
    r"""Return a text that LaTeX prints literally, on one line.

    Example:
        >>> escape_latex("seq_ft: 50% & more")
        'seq\\_ft: 50\\% \\& more'
    """
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def latex_grid(grid: Grid, notes: Notes) -> str:
    """Return the ``tabular`` alone."""
    lines = [r"\begin{tabular}{l" + "r" * (len(grid.columns) + 1) + "}", r"\toprule"]
    lines.append(" & ".join(["method", "runs", *map(escape_latex, grid.columns)]) + r" \\")
    lines.append(r"\midrule")
    for method in (*grid.rows, *grid.references):
        cells = _cells(grid, method, r"{} $\pm$ {}", lambda text: rf"\textbf{{{text}}}")
        cells = [re.sub(r"-(?=\d)", "$-$", cell) for cell in cells]
        name = escape_latex(method + notes.sign(method))
        lines.append(" & ".join([name, str(notes.runs.get(method, "")), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def figures_latex(grid: Grid, label: str, notes: Notes) -> str:
    """Return a table whose columns are figures for LaTeX."""
    return _grid_table(grid, label, notes, definition_lines(notes, grid.columns))


def task_latex(name: str, grid: Grid, notes: Notes) -> str:
    """Return the table of one figure by task for LaTeX."""
    definitions = [*definition_lines(notes, [name]), OF_A_TASK]
    return _grid_table(grid, f"tab:{name.lower()}_by_task", notes, definitions)


def _grid_table(grid: Grid, label: str, notes: Notes, definitions: list[str]) -> str:
    below = [*statements(notes, bold=bool(grid.best)), *definitions]
    return latex_table(grid.title, label, latex_grid(grid, notes), below)


def latex_table(title: str, label: str, tabular: str, below: Iterable[str]) -> str:
    r"""Return a table no wider than the page, with lines of text below it.

    Args:
        title: Its caption.
        label: What ``\ref`` names.
        tabular: Its ``tabular``.
        below: Plain lines.
    """
    text = "\\par\n".join(map(escape_latex, below))
    return (
        "% needs \\usepackage{booktabs,adjustbox}; non-ASCII names need xelatex or lualatex\n"
        "\\begin{table*}\n\\centering\n"
        f"\\caption{{{escape_latex(title)}.}}\n\\label{{{label}}}\n"
        "\\begin{adjustbox}{max width=\\textwidth}\n"
        f"{tabular}\n"
        "\\end{adjustbox}\n"
        f"\\par\\smallskip\n\\begin{{minipage}}{{\\textwidth}}\\footnotesize\n{text}\n"
        "\\end{minipage}\n\\end{table*}\n"
    )


# -- CSV ---------------------------------------------------------------------------------------


def write_summary_csv(path: Path, grid: Grid, notes: Notes) -> None:
    """Write means and standard deviations in full precision; missing values are empty."""
    names = [f"{name}{end}" for name in grid.columns for end in ("", " sd")]
    rows = []
    for method, row in {**grid.rows, **grid.references}.items():
        head = {"method": method, "runs": str(notes.runs.get(method, ""))}
        given = {"note": "; ".join(notes.given.get(method, ()))}
        rows.append(head | _numbers(row) | given)
    write_csv(path, ["method", "runs", *names, "note"], rows)


def write_task_csv(path: Path, grids: Mapping[str, Grid], notes: Notes) -> None:
    """Write one row per method and task: mean and deviation of each figure in full precision."""
    names = [f"{name}{end}" for name in grids for end in ("", " sd")]
    rows = []
    references = dict.fromkeys(name for grid in grids.values() for name in grid.references)
    for method, runs in {**notes.runs, **dict.fromkeys(references, "")}.items():
        for task in next(iter(grids.values())).columns:
            head = {"method": method, "runs": str(runs), "task": task}
            cells = {n: _cell_of(grid, method, task) for n, grid in grids.items()}
            rows.append(head | _numbers(cells))
    write_csv(path, ["method", "runs", "task", *names], rows)


def _cell_of(grid: Grid, row: str, column: str) -> Pair:
    known = row in grid.rows or row in grid.references
    return grid.row(row)[column] if known else (math.nan, math.nan)


def _numbers(row: Mapping[str, Pair]) -> dict[str, str]:
    return {
        name + end: "" if math.isnan(value) else repr(value)
        for name, pair in row.items()
        for end, value in zip(("", " sd"), pair, strict=True)
    }
