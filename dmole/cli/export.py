"""``dmole export``: adapters of a run for another server."""

from __future__ import annotations

from pathlib import Path

from dmole.cli.arguments import ArgumentParser
from dmole.cli.trust import take_trusted
from dmole.messages import visible

SERVERS = ("vllm",)


def run_export(words: list[str]) -> None:
    """Write the experts of a finished run as adapters for another server."""
    parser = ArgumentParser("dmole export", description=run_export.__doc__)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("output", type=Path, help="folder to make")
    parser.add_argument("--for", dest="server", choices=SERVERS, required=True, help="the server")
    parser.add_argument("--base", help="the base model as the server is started with")
    words, trusted = take_trusted(words)
    options = parser.parse_args(words)

    from dmole.publish.adapters import export_adapters

    export = export_adapters(options.run, options.output, base=options.base, trusted=trusted)
    print(f"{visible(str(options.output))}: {', '.join(export.adapters)}")
