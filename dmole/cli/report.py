"""The verb ``report``: one HTML page of finished or running runs."""

from __future__ import annotations

from pathlib import Path

from dmole.cli.arguments import ArgumentParser, check_device
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
    parser.add_argument(
        "--regenerate",
        action="store_true",
        help="generate the answers that other thresholds need, with base model and test data, "
        "and keep them in RUN",
    )
    parser.add_argument("--device", help="device that generates them with --regenerate (cpu)")
    options = parser.parse_args(words)
    if options.device and not options.regenerate:
        raise ValueError("--device needs --regenerate: the page itself is written without one")
    if options.regenerate:
        from dmole.report.regenerate import regenerate

        check_device(options.device)
        for run in options.runs:
            count = regenerate(run, device=options.device or "cpu")
            show(f"{run}: answers generated: {count}")
    show(str(write_report(options.runs, options.output)))
