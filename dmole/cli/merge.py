"""``dmole merge``: experts of a run as plain weights."""

from __future__ import annotations

from pathlib import Path

from dmole.cli.arguments import ArgumentParser
from dmole.cli.trust import take_trusted
from dmole.messages import visible


def run_merge(words: list[str]) -> None:
    """Write the base model with experts added to its weights, for transformers alone."""
    parser = ArgumentParser("dmole merge", description=run_merge.__doc__)
    parser.add_argument("run", help="run folder, bundle or hf://org/name")
    parser.add_argument("output", type=Path, help="folder to make")
    parser.add_argument("--experts", required=True, help="names joined by +, such as paint+count")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; default: as the base model")
    parser.add_argument("--base", help="folder or hub name of the base model")
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="run code of the base model"
    )
    words, trusted = take_trusted(words)
    options = parser.parse_args(words)

    from dmole.publish.merge import merge_run

    merge_run(
        options.run,
        options.experts.split("+"),
        options.output,
        dtype=options.dtype,
        base=options.base,
        trusted=trusted,
        trust_remote_code=options.trust_remote_code,
    )
    print(visible(str(options.output)))
