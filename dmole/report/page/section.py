"""What a section of the page is.

To write a section, add a file to `dmole.report.page.sections` that holds one `Section`, and name it
in `dmole.report.page.sections.SECTIONS` at its place in the reading order:

- ``draw`` takes a `dmole.report.page.record.RunRecord` and returns the body for one run. It reads
  what the run folder holds, and nothing else; it returns None if the run has nothing to show.
- A broken file raises ``ValueError``. The page shows its message in place of the body.
- Build markup with `dmole.report.page.markup`: its functions escape every value that is not
  ``Markup``. Never pass text of a run to ``Markup`` itself. Style with classes of
  ``templates/page.css``: the page's content policy blocks ``style`` attributes.
- Draw with `dmole.report.page.svg` and `dmole.report.page.heat`. Give marks, cells, rows and
  legend entries of a task ``data-task`` (the functions take ``task``), so the filter finds them.
- Write a title that says what to see, and a lead that says how to read it in one or two sentences.
- Bound what is drawn, whatever the folder holds. Set ``costly`` if the section reads more than the
  small tables of the run: it is then left out of the page that is written after each stage.
  Give a ``brief`` body if the whole one grows with the square of the number of tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from dmole.report.page.record import RunRecord


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        id: Its anchor: lower-case letters and hyphens.
        title: Its heading, which says what to see; the words before a colon name it in the list of
            sections.
        lead: One or two sentences: what is shown and how to read it.
        draw: Returns the body for one run, or None if the run has nothing to show.
        costly: Whether it is left out of the page that is written after each stage.
        brief: Takes the place of ``draw`` on that page; None draws the whole section.
    """

    id: str
    title: str
    lead: str
    draw: Callable[[RunRecord], Markup | None]
    costly: bool = False
    brief: Callable[[RunRecord], Markup | None] | None = None
