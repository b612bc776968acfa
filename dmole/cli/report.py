"""The verb ``report``: one HTML page of finished or running runs."""

from __future__ import annotations

from pathlib import Path

from dmole.cli.arguments import ArgumentParser
from dmole.messages import show


def run_report(words: list[str]) -> None:
    """Write one HTML page of a run, or of several runs side by side."""
    from dmole.report.page import write_report

    parser = ArgumentParser(
        "dmole report",
        description=run_report.__doc__,
        epilog="The page needs no network. What a running or older run lacks is left out.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--output", type=Path, help="file to write; needed for several runs (RUN/report.html)"
    )
    options = parser.parse_args(words)
    show(str(write_report(options.runs, options.output)))
