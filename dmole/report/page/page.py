"""Assembles the page: one file that needs no network."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dmole._version import __version__
from dmole.messages import one_line, visible
from dmole.report.page.comparison import comparison_table
from dmole.report.page.heat import level_rules
from dmole.report.page.markup import html
from dmole.report.page.record import RunRecord
from dmole.report.page.section import Section
from dmole.report.page.sections import SECTIONS
from dmole.storage.files import atomic_path, refusing

FILE = "report.html"
"""Name of the page in a run folder."""

MARKS = ("config.yaml", "model.json", "checkpoints", "metrics.json", "evaluation_matrix.csv")
"""A folder with none of these is not that of a run."""


@dataclass(frozen=True)
class _Shown:
    """A section with the body of each run that has it, by the name of the run."""

    section: Section
    bodies: Sequence[tuple[str, Markup]]


def write_report(
    runs: Sequence[str | Path], output: str | Path | None = None, *, costly: bool = True
) -> Path:
    """Write the page of one run, or of several runs side by side.

    Args:
        runs: Run folders: finished, running or of earlier versions. What they lack is left out.
        output: The file; None writes ``report.html`` in the folder of a single run.
        costly: Whether to include the sections that read more than the small tables of a run.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If a run folder is missing.
        ValueError: If there is no run, a run is given twice, a folder holds no file of a run, or
            several runs have no ``output``, or it is a folder.
        OSError: If the file cannot be written.
    """
    folders = [Path(run).resolve() for run in runs]
    if not folders:
        raise ValueError("no run to report")
    if repeated := [folder for at, folder in enumerate(folders) if folder in folders[:at]]:
        raise ValueError(f"run {repeated[0]} is given twice")
    if output is None and len(folders) > 1:
        raise ValueError("several runs share one page: name its file with --output")
    depth = next(n for n in itertools.count(2) if len({f.parts[-n:] for f in folders}) == len(runs))
    records = [RunRecord(run, depth) for run in runs]
    if other := [record.folder for record in records if not any(map(record.has, MARKS))]:
        raise ValueError(f"{other[0]} holds no file of a run; a run folder is ROOT/NAME/version_N")
    file = records[0].folder / FILE if output is None else Path(output)
    if file.is_dir():
        raise ValueError(f"--output {file} is a folder: name a file")
    text = render(records, costly=costly)
    with atomic_path(file, flush=False) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return file


def render(records: Sequence[RunRecord], *, costly: bool = True) -> str:
    """Return the page as text.

    Args:
        records: The runs, the first on the left.
        costly: See `write_report`.
    """
    environment = Environment(
        loader=PackageLoader(__package__, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = _asset(environment, "page.css") + level_rules()
    script = _asset(environment, "page.js")
    chosen = SECTIONS if costly else [_brief(each) for each in SECTIONS if not each.costly]
    shown = [_collect(each, records) for each in chosen]
    page = environment.get_template("page.html").render(
        version=__version__,
        names=[record.name for record in records],
        tasks=list(dict.fromkeys(task for record in records for task in _tasks(record))),
        problems=[line for record in records for line in _problems(record, costly)],
        comparison=comparison_table(records) if len(records) > 1 else None,
        sections=[each for each in shown if each.bodies],
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        complete=costly,
    )
    return "\n".join(map(visible, page.split("\n")))


def _brief(section: Section) -> Section:
    return replace(section, draw=section.brief or section.draw)


def _collect(section: Section, records: Sequence[RunRecord]) -> _Shown:
    bodies = ((record.name, _body(section, record)) for record in records)
    return _Shown(section, [(name, body) for name, body in bodies if body is not None])


def _body(section: Section, record: RunRecord) -> Markup | None:
    """Return the body of a section, or one line that says why it cannot be drawn."""
    try:
        with refusing(record.folder, "run folder"):  # files of strangers may hold anything
            return section.draw(record)
    except (ValueError, OSError) as error:
        return html('<p class="error" role="note">{}</p>', one_line(error))


def _tasks(record: RunRecord) -> list[str]:
    try:
        return record.tasks
    except (ValueError, OSError):
        return []  # the sections that need it say why


def _problems(record: RunRecord, complete: bool) -> Iterator[str]:
    try:
        lines = record.altered(complete=complete)
        yield from (f"{record.name}: {one_line(line)}" for line in lines)
    except (ValueError, OSError) as error:
        yield f"{record.name}: {one_line(error)}"


def _asset(environment: Environment, name: str) -> str:
    loader = environment.loader
    assert loader is not None  # set above
    return loader.get_source(environment, name)[0]


def _hash(text: str) -> str:
    """Return the source expression by which a content policy allows an inline text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
