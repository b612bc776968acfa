"""After each stage and at the end: write the HTML page of the run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from dmole.callbacks.base import ContinualCallback
from dmole.messages import one_line
from dmole.report.page import write_report

if TYPE_CHECKING:
    from dmole.module import ContinualModule
    from dmole.run.state import SequenceState

log = logging.getLogger("dmole")


class ReportPage(ContinualCallback):
    """Writes ``report.html`` from the files of the run folder; see `dmole.report.page`.

    After a stage the page has the sections that are cheap to make, at the end all of them. It is a
    view of other files and no result: an error while it is written is a warning, a resumed run
    writes it anew.
    """

    def on_evaluation_end(self, state: SequenceState, module: ContinualModule) -> None:
        """Write the page of the stages so far."""
        _write(state, costly=False)

    def on_sequence_end(self, state: SequenceState, module: ContinualModule) -> None:
        """Write the complete page."""
        _write(state, costly=True)


def _write(state: SequenceState, *, costly: bool) -> None:
    if not state.is_global_zero:
        return
    try:
        write_report([state.run_dir], costly=costly)
    except Exception as error:  # the results are safe; a picture of them must not end the run
        log.warning("no report.html: %s", one_line(error))
