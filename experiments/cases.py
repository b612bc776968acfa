"""Runs a folder of cases, small inputs that once failed, and says which of them are right.

A case is a folder with either ``check.py``, which exits with 0 when it is right, or ``run.sh``,
which prints what happened; `experiments.case_outputs` holds what that output must show.

Usage: python -m experiments.cases FOLDER [NAME ...]
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from experiments.case_outputs import EXPECTED


def run_case(case: Path, work: Path, timeout: float) -> str:
    """Return the reason why a case is wrong; empty if it is right."""
    check = case / "check.py"
    words = [sys.executable, str(check)] if check.is_file() else ["bash", str(case / "run.sh")]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": path, "TMPDIR": str(work), "CASE_WORK": str(work / "cases")}
    environment = {**os.environ, **own, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with all that it started
        process.communicate()
        return f"runs longer than {timeout:.0f} s"
    if check.is_file():
        last = (output.strip().splitlines() or ["no output"])[-1]
        return "" if process.returncode == 0 else last.removeprefix("WRONG: ")
    if case.name not in EXPECTED:
        return "nothing is stated that its output must show"
    try:
        return EXPECTED[case.name](output)
    except (ValueError, KeyError, IndexError) as error:
        return f"its output cannot be read: {error}"


def main(words: list[str] | None = None) -> int:
    """Run the cases and print a table; return 1 if one is wrong."""
    parser = argparse.ArgumentParser("experiments.cases", description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder of cases")
    parser.add_argument("names", nargs="*", help="cases to run; all by default")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for each case")
    options = parser.parse_args(words)
    found = {p.parent.name: p.parent for p in options.folder.glob("*/README")}
    names = options.names or sorted(found)
    unknown = [name for name in names if name not in found]
    if unknown or not names:
        parser.error(f"{options.folder} has no case {', '.join(unknown) or 'at all'}")
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="dmole-cases-") as work:
        for name in names:
            reason = run_case(found[name], Path(work), options.timeout)
            wrong += bool(reason)
            print(
                f"{'WRONG' if reason else 'right'}  {name:<36} {reason[:300]}".rstrip(), flush=True
            )
    print(f"{len(names) - wrong} of {len(names)} cases are right")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
