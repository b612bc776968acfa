"""Compare runs that extend a finished one with runs planned with all tasks, for every method.

    python -m experiments.extend_versus_plan                        # every method, as a table
    python -m experiments.extend_versus_plan dmole seq_ft           # only these methods
    python -m experiments.extend_versus_plan --output table.md

The sequence is that of `digest_runs.py` with 8 training samples a task: three tiny synthetic tasks.
For each method one run learns all three; another one learns two, and a third run extends that by
the last task and fills the rows of the old stages (``trainer.fill_rows``). The table says which
parts are equal, bit for bit. A method that cannot be extended is listed with the message.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from dmole.cli.main import main as dmole
from experiments.digest_runs import METHOD_FLAGS, quicken, settings
from experiments.digests import ROOT, methods_of
from experiments.extended_content import Equality, compare_extended

COLUMNS = ("experts", "routers", "last row", "oracle matrix", "predictions", "all rows")

WHOLE = ("replay_importance",)
"""Methods that keep all samples, since a batch has to hold replayed and held-out ones."""


def learn(method: str, tasks: int, root: Path, *more: str) -> str:
    """Run a method on the first tasks of the sequence.

    Args:
        method: Name of a shipped method.
        tasks: Number of tasks.
        root: Folder of the run; made if necessary.
        more: More words of the command line.

    Returns:
        The last line that the command printed if it failed; else an empty text.
    """
    small = settings()
    small["data"]["tasks"] = small["data"]["tasks"][:tasks]
    if method not in WHOLE:
        for task in small["data"]["tasks"]:
            task["train"] = task["train"].replace("size=16", "size=8")
    root.mkdir(parents=True, exist_ok=True)
    config = root / f"{tasks}.yaml"
    config.write_text(yaml.safe_dump(small), encoding="utf-8")
    names = ("quickstart.yaml", str(config), f"methods/{method}.yaml")
    words = ["fit", *(word for name in names for word in ("--config", name))]
    words += ["--trainer.default_root_dir", str(root), "--trainer.name", "run", *more]
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        status = dmole([*words, *METHOD_FLAGS.get(method, ())])
    return errors.getvalue().splitlines()[-1] if status else ""


def compare(method: str, folder: Path) -> Equality | str:
    """Return what is equal between an extended and a planned run of a method, or why not.

    Args:
        method: Name of a shipped method.
        folder: Empty folder for three runs.

    Raises:
        RuntimeError: If a run fails that does not extend another one.
    """
    planned, parent, child = (folder / name for name in ("planned", "parent", "child"))
    for tasks, root in ((3, planned), (2, parent)):
        if message := learn(method, tasks, root):
            raise RuntimeError(f"{method}: {message}")
    version = Path("run") / "version_0"
    more = ("--ckpt_path", str(parent / version), "--trainer.fill_rows", "true")
    if message := learn(method, 3, child, *more):
        return message.rpartition(" cannot be extended: ")[2]
    return compare_extended(planned / version, child / version)


def rows(methods: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield f"| method | {' | '.join(COLUMNS)} |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for method in methods:
        with tempfile.TemporaryDirectory() as folder:
            found = compare(method, Path(folder))
        if isinstance(found, str):
            yield f"| `{method}` | {found} |" + " |" * (len(COLUMNS) - 1)
        else:
            *parts, empty = vars(found).values()
            cells = ["equal" if same else "differs" for same in parts]
            if empty:
                cells[-1] += f", {empty} empty"
            yield f"| `{method}` | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, metavar="FILE.md", help="write the table there too")
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="name of configs/methods")
    options = parser.parse_args()
    quicken()
    lines = []
    for line in rows(options.methods or methods_of(ROOT)):
        print(line, flush=True)
        lines.append(line)
    if options.output is not None:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
