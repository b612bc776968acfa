"""``dmole experts``: list the experts of a run, take some out, rename them, bring others in."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dmole.cli.arguments import ArgumentParser
from dmole.messages import json_text, show

_EPILOG = (
    "RUN stays as it is: remove, rename and import write a new run folder, by default the next "
    "version beside RUN. disable and enable switch experts of RUN itself, by its disabled.json."
)


def run_experts(words: Sequence[str]) -> None:
    """List the experts of a run, take some out, rename them, bring others in."""
    parser = _parser()
    options, overrides = parser.parse_known_args(list(words))
    verb = options.verb
    if verb in ("list", "disable", "enable") and overrides:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    if verb == "list":
        _list(options.run, as_json=options.json)
    elif verb in ("disable", "enable"):
        from dmole.editing.switching import switch_experts

        off = switch_experts(options.run, options.names, off=verb == "disable")
        show(f"{options.run}: disabled: {', '.join(off) or 'none'}")
    else:
        from dmole.cli.edits import run_edit

        run_edit(options, overrides)


def _list(run: Path, *, as_json: bool) -> None:
    from dmole.editing.table import expert_rows, rows_as_json, table_text

    rows = expert_rows(run)
    show(json_text(rows_as_json(rows)) if as_json else table_text(rows))


def _parser() -> ArgumentParser:
    parser = ArgumentParser("dmole experts", description=run_experts.__doc__, epilog=_EPILOG)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    verbs = parser.add_subparsers(dest="verb", required=True)
    listed = verbs.add_parser("list", help="what each expert is and which samples use it")
    listed.add_argument("--json", action="store_true", help="as JSON")
    for name, text in (("disable", "do not use experts until they are enabled"),
                       ("enable", "use experts again")):  # fmt: skip
        verbs.add_parser(name, help=text).add_argument("names", nargs="+", metavar="NAME")
    remove = verbs.add_parser("remove", help="a run without some of the experts")
    remove.add_argument("names", nargs="+", metavar="NAME")
    rename = verbs.add_parser("rename", help="a run in which an expert has another name")
    rename.add_argument("old", metavar="OLD")
    rename.add_argument("new", metavar="NEW")
    brought = verbs.add_parser("import", help="a run with an expert of another run or a LoRA")
    brought.add_argument("source", nargs="*", metavar="FROM_RUN NAME", help="run and its expert")
    _import_options(brought)
    for each in (remove, rename, brought):
        each.add_argument("--output", type=Path, help="folder to make; default: the next version")
    for each in (remove, brought):
        each.add_argument(
            "--no_evaluation", action="store_true", help="do not evaluate the new run"
        )
    return parser


def _import_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--as", dest="new", metavar="NEW", help="name of the expert in the result")
    parser.add_argument("--from_adapter", type=Path, metavar="DIR", help="folder that PEFT wrote")
    parser.add_argument("--samples", help="training samples of the expert's task, for its router")
    parser.add_argument("--image_root", help="folder of the images; default: that of the file")
    parser.add_argument("--test", help="test samples for --from_adapter; default: --samples")
    parser.add_argument("--metric", default="exact_match", help="metric for --from_adapter")
    parser.add_argument("--prompt_suffix", default="", help="text after each question")
    parser.add_argument("--max_new_tokens", type=int, default=32, help="most tokens of an answer")
