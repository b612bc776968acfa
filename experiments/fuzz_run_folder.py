"""Damages copies of a run at random and runs every verb that reads a run on them.

    python -m experiments.fuzz_run_folder RUN [--seconds 600] [--seed 0] [--verbs compare,list]

A verb must end within a time limit, without an exception that is not one of the input, and
without creating the file that every attack in `experiments.mutations` would create. Each attempt
is a fork of a process that has imported everything, so that an attempt takes a second. RUN is a
finished run, or one that was interrupted, to resume it; it is not changed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from dmole.cli.main import main as dmole
from experiments.mutations import mutate

_EDITS = {
    "list": (),
    "remove": ("{name}", "--no_evaluation"),
    "rename": ("{name}", "renamed"),
    "import": ("{run}", "{name}", "--as", "imported", "--no_evaluation"),
}
"""Words after a verb of ``experts``."""

MEMORY = 6 << 30
"""Bytes of address space that an attempt may take beyond those of this process."""


Main = Callable[[list[str]], int]
"""Runs a command line and returns its exit status."""


@dataclass
class Report:
    """Outcomes of the attempts.

    Args:
        outcomes: Number of attempts by verb and exit status.
        findings: Description of each attempt that should not have ended as it did.
        attempts: Each attempt with its last line of output.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    attempts: list[str] = field(default_factory=list)


def arguments(verb: str, run: Path, original: Path, folder: Path) -> list[str]:
    """Return the command line of a verb for a damaged run.

    Args:
        verb: ``compare``, ``report``, ``predict``, ``evaluate``, an edit of ``experts`` (``list``,
            ``remove``, ``rename``, or ``import`` into the original), or ``fit``, which resumes the
            run.
        run: The damaged run.
        original: The run before it was damaged.
        folder: Folder for output.
    """
    if verb == "compare":
        return ["compare", str(run), "--output", str(folder / "comparison")]
    if verb == "report":
        return ["report", str(run), "--output", str(folder / "report.html")]
    if verb == "predict":
        return ["predict", str(run), "--prompt", "what is it?"]
    if verb == "evaluate":
        return ["evaluate", str(run), "--output", str(folder / "evaluation")]
    if verb in _EDITS:
        name = json.loads((original / "experts" / "experts.json").read_text(encoding="utf-8"))[0]
        words = [word.format(run=run, name=name) for word in _EDITS[verb]]
        changed = original if verb == "import" else run
        output = [] if verb == "list" else ["--output", str(folder / "edited")]
        return ["experts", str(changed), verb, *words, *output]
    config = str(original / "config.yaml")  # of the user; the run is that of a stranger
    return ["fit", "--config", config, "--ckpt_path", str(run)]


def attempt(words: Sequence[str], log: Path, seconds: int, verb_main: Main = dmole) -> str:
    """Run a command line in a fork of this process and return how it ended.

    Args:
        words: The arguments of ``dmole``.
        log: Receives output and traceback.
        seconds: Most seconds.
        verb_main: Runs the command line.

    Returns:
        The exit status as text, ``exception``, ``hang`` or ``killed by <signal>``.
    """
    child = os.fork()
    if child == 0:
        _run(words, log, seconds, verb_main)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return "hang" if number == signal.SIGALRM else f"killed by {signal.Signals(number).name}"
    code = os.waitstatus_to_exitcode(status)
    return "exception" if code == _EXCEPTION else str(code)


_EXCEPTION = 99


def _run(words: Sequence[str], log: Path, seconds: int, verb_main: Main) -> None:
    """Run a command line in this process, which then ends."""
    code = _EXCEPTION
    try:
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process wherever it waits
        signal.alarm(seconds)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
        code = verb_main(list(words))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


_READ = {"fit": "[ce][hm]*", "compare": "*", "report": "*", **dict.fromkeys(_EDITS, "*")}
"""Patterns of the files that a verb reads, of ``fit`` checkpoints and embeddings; four of five
mutations are of these."""


def damage(rng: random.Random, run: Path, verb: str) -> list[str]:
    """Mutate one to three files of a run, mostly of those that a verb reads; return how."""
    done = []
    files = [path for path in sorted(run.rglob("*")) if _is_read(path.relative_to(run))]
    if rng.random() < 0.8:
        files = [
            path
            for path in files
            if fnmatch(str(path.relative_to(run)), _READ.get(verb, "[cemr]*"))
        ]
    if verb in ("compare", "report"):
        files = [path for path in files if path.parent == run]
    for path in rng.sample(files, min(len(files), rng.choice([1, 1, 1, 2, 3]))):
        try:
            done.append(f"{mutate(rng, path)} {path.relative_to(run)}")
        except (OSError, ValueError, IndexError, AttributeError, TypeError) as error:
            done.append(f"nothing ({error}) {path.relative_to(run)}")
    return done


def _is_read(path: Path) -> bool:
    return not path.name.startswith("events.") and path.suffix not in (".png", ".svg", "")


def fuzz(
    run: Path,
    verbs: Sequence[str],
    seconds: float,
    seed: int,
    *,
    limit: int = 120,
    attempts: int = 0,
    verb_main: Main = dmole,
) -> Report:
    """Damage copies of a run until the time is over.

    Args:
        run: The run; it is not changed.
        verbs: Verbs to run in turn.
        seconds: Seconds to spend.
        seed: Seed of the mutations.
        limit: Seconds after which an attempt counts as a hang.
        attempts: Most attempts; 0 for no limit.
        verb_main: Runs the command lines.
    """
    report, end, number = Report(), time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory(prefix="dmole-fuzz-") as name:
        while time.monotonic() < end and (not attempts or number < attempts):
            number += 1
            folder = Path(name) / str(number)
            copy = folder / "run" / "version_0"
            shutil.copytree(run, copy)
            rng = random.Random(f"{seed}/{number}")
            verb = verbs[number % len(verbs)]
            done = damage(rng, copy, verb)
            log = folder / "log.txt"
            outcome = attempt(arguments(verb, copy, run, folder), log, limit, verb_main)
            executed = any(folder.rglob("executed"))
            report.outcomes[f"{verb} {outcome}"] += 1
            lines = log.read_text(errors="replace").splitlines()
            report.attempts.append(f"{verb} {outcome} {done}: {lines[-1] if lines else ''}")
            if executed or outcome not in ("0", "1"):
                last = log.read_text(errors="replace")[-1500:]
                ended = "EXECUTED" if executed else outcome
                report.findings.append(f"{seed}/{number} {verb}: {ended} after {done}\n{last}")
            shutil.rmtree(folder, ignore_errors=True)
    return report


def main() -> int:
    """Fuzz as the command line says; return 1 if there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("run", type=Path)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attempts", type=int, default=0)
    parser.add_argument("--limit", type=int, default=120, help="seconds of an attempt")
    parser.add_argument("--verbose", action="store_true", help="print all attempts")
    every = "compare,report,predict,evaluate,list,remove,rename,import,fit"
    parser.add_argument("--verbs", default=every)
    options = parser.parse_args()
    import dmole.cli.edits
    import dmole.cli.lightning
    import dmole.report.compare  # noqa: F401  a fork needs no imports

    verbs = options.verbs.split(",")
    report = fuzz(
        options.run.resolve(),
        verbs,
        options.seconds,
        options.seed,
        limit=options.limit,
        attempts=options.attempts,
    )
    if options.verbose:
        print("\n".join(report.attempts))
    for finding in report.findings:
        print(finding, end="\n\n")
    for outcome, count in sorted(report.outcomes.items()):
        print(f"{count:6d}  {outcome}")
    return int(bool(report.findings))


if __name__ == "__main__":
    sys.exit(main())
