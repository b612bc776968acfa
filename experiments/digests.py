"""Compare the results of every method between the code of a commit and the working tree.

    python -m experiments.digests --reference REV                  # every method of that commit
    python -m experiments.digests --reference REV dmole seq_ft     # only these methods
    python -m experiments.digests --reference REV --output digests.json

Both run a tiny sequence (`digest_runs.py`) in separate processes: the code of REV from an archive,
the other from the working tree, with uncommitted changes. The script compares the content of the
run folders (`experiments/run_content.py`). It prints one line per method with the names of all
differing digests; the exit status is 1 if any digest differs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.digest_runs import FINISHED
from experiments.run_content import run_content

ROOT = Path(__file__).resolve().parents[1]

Content = dict[str, str]
"""Digests of a run by logical name."""


@dataclass(frozen=True)
class Comparison:
    """Digests of a method with both versions of the code; None for a run that failed."""

    method: str
    reference: Content | None
    here: Content | None

    @property
    def differing(self) -> list[str]:
        """Return the names with different digests or with a digest on one side only."""
        if self.reference is None or self.here is None:
            sides = {"the reference run failed": self.reference, "the run failed": self.here}
            return [message for message, content in sides.items() if content is None]
        names = sorted(self.reference.keys() | self.here.keys())
        return [name for name in names if self.reference.get(name) != self.here.get(name)]


def find_commit(revision: str) -> str:
    """Return the full hash of a commit.

    Raises:
        LookupError: If there is no git, no repository or no such commit.
    """
    command = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError as error:
        raise LookupError("git is not installed") from error
    except subprocess.CalledProcessError as error:
        raise LookupError(f"there is no commit {revision} in a repository at {ROOT}") from error


def unpack(commit: str, folder: Path) -> None:
    """Write the files of a commit into a folder without a git worktree."""
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", commit]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")


def methods_of(tree: Path) -> list[str]:
    """Return the names of the methods that a source tree ships."""
    return sorted(path.stem for path in (tree / "configs" / "methods").glob("*.yaml"))


def learn(tree: Path, methods: Sequence[str], folder: Path) -> dict[str, Content | None]:
    """Run methods with the code of a source tree.

    Args:
        tree: Source tree with the package and its configs.
        methods: Names of methods.
        folder: Folder for the runs and their log; created here.

    Returns:
        The content of each run, or None where it failed.
    """
    folder.mkdir(parents=True)
    script = ROOT / "experiments" / "digest_runs.py"
    command = [sys.executable, "-P", str(script), str(tree), str(folder), *methods]
    environment = os.environ | {
        "PYTHONPATH": str(tree),
        "OMP_NUM_THREADS": "1",
        "DMOLE_TRACEBACK": "1",
    }
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        # in a folder without configs: the working directory takes precedence over the tree
        subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    contents: dict[str, Content | None] = dict.fromkeys(methods)
    for method in methods:
        if (folder / method / FINISHED).is_file():
            contents[method] = run_content(folder / method / "version_0")
    if None in contents.values():
        print((folder / "log.txt").read_text(encoding="utf-8")[-4000:], file=sys.stderr)
    return contents


def compare(commit: str, methods: Sequence[str], folder: Path) -> list[Comparison]:
    """Run methods with the code of a commit and with that of the working tree.

    Args:
        commit: A commit of this repository.
        methods: Names of methods; if empty, all methods of the commit.
        folder: Empty folder for the files of the commit and all runs.
    """
    tree = folder / "tree"
    unpack(commit, tree)
    methods = methods or methods_of(tree)
    reference = learn(tree, methods, folder / "reference")
    here = learn(ROOT, methods, folder / "here")
    return [Comparison(method, reference[method], here[method]) for method in methods]


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", required=True, metavar="REV", help="commit to compare with")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write all digests there")
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="name of configs/methods")
    return parser.parse_args()


def main() -> int:
    """Print the comparison of each method, and return the exit status."""
    options = parse()
    try:
        commit = find_commit(options.reference)
    except LookupError as error:
        raise SystemExit(str(error)) from error
    with tempfile.TemporaryDirectory() as folder:
        results = compare(commit, options.methods, Path(folder))
    for one in results:
        print(f"{one.method}: {', '.join(one.differing) or 'equal'}")
    equal = sum(not one.differing for one in results)
    print(f"{equal} of {len(results)} methods equal those of {commit[:7]}")
    if options.output is not None:
        content = {one.method: {"reference": one.reference, "here": one.here} for one in results}
        text = json.dumps({"commit": commit, "methods": content}, indent=2)
        options.output.write_text(text + "\n", encoding="utf-8")
    return int(equal < len(results))


if __name__ == "__main__":
    sys.exit(main())
