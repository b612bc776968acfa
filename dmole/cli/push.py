"""``dmole push``: publishes a run or a bundle on the hub."""

from __future__ import annotations

from pathlib import Path

from dmole.cli.arguments import ArgumentParser
from dmole.cli.bundle import add_card_arguments, data_sources
from dmole.cli.trust import take_trusted


def run_push(words: list[str]) -> None:
    """Publish a bundle, or the bundle of a finished run, as a repository of the hub."""
    parser = ArgumentParser("dmole push", description=run_push.__doc__)
    parser.add_argument("folder", type=Path, help="run folder or bundle")
    parser.add_argument("name", help="repository, org/name; it is made if it is not there")
    parser.add_argument("--private", action="store_true", help="make a private repository")
    add_card_arguments(parser)
    words, trusted = take_trusted(words)
    options = parser.parse_args(words)

    from dmole.publish.hub import push

    address = push(
        options.folder,
        options.name,
        private=options.private,
        base=options.base,
        licence=options.license,
        sources=data_sources(options.data_source),
        trusted=trusted,
    )
    print(address)
