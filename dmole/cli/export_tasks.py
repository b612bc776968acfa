"""The verb ``data export-tasks``: tasks of a config as tasks of lmms-eval."""

from __future__ import annotations

from pathlib import Path

from dmole.cli.arguments import ArgumentParser, require_config
from dmole.messages import visible

_VERB = "dmole data export-tasks"


def run_export_tasks(words: list[str]) -> None:
    """Write the test samples of a config as tasks of lmms-eval, scored as dmole scores them."""
    parser = ArgumentParser(
        _VERB,
        usage=f"{_VERB} OUT --config FILE [--config FILE ...] [--key value ...] [options]",
        description=run_export_tasks.__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("output", type=Path, help="folder to make, for --include_path")
    parser.add_argument("--prefix", default="dmole", help="beginning of the names of the tasks")
    options, rest = parser.parse_known_args(words)
    require_config(rest, f"{_VERB} OUT")

    from dmole.cli.data_config import open_data
    from dmole.harness.tasks import export_tasks

    names = export_tasks(open_data(rest)[0], options.output, prefix=options.prefix)
    print(f"{visible(str(options.output))}: {', '.join(names)}")
