"""The console script. Help and version are fast; each verb imports only what it needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from dmole._version import __version__
from dmole.cli.overview import HELP
from dmole.messages import excerpt, one_line, visible


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status.

    Args:
        arguments: Arguments after the program's name; by default those of the process.

    Returns:
        0; 1 after an error of the input, which is printed in one line (``data check`` lists all
        errors); 2 if the verb is unknown; 3 if ``watch`` reported an unseen task; 128 plus the
        number of a signal that ended the run.
        If the environment variable ``DMOLE_TRACEBACK`` is set, an error is raised instead.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        print(f"dmole {__version__}")
        return 0
    verbs: dict[str, Callable[[list[str]], int | None]] = {
        "fit": _sequence,
        "add": _add,
        "plan": _later("plan"),
        "allocate": _sequence,
        "evaluate": _evaluate,
        "predict": _predict,
        "watch": _later("watch"),
        "bundle": _later("bundle"),
        "push": _later("push"),
        "merge": _later("merge"),
        "export": _later("export"),
        "route-proxy": _later("route-proxy"),
        "serve": _later("serve"),
        "compare": _compare,
        "report": _later("report"),
        "data": _data,
        "score": _score,
        "experts": _experts,
        "configs": _configs,
        "completion": lambda words: _completion(words, list(verbs)),
    }
    if words[0] not in verbs:
        print(f"dmole: no verb {excerpt(words[0])}; there are {', '.join(verbs)}", file=sys.stderr)
        return 2
    try:
        return verbs[words[0]](words) or 0
    except Exception as error:
        status = getattr(error, "exit_status", None)  # a signal ended the run
        if status is not None:
            _print_error(one_line(str(error)))
            return int(status)
        reported = _explained(error)
        if not isinstance(reported, (ValueError, OSError, ImportError)):
            raise
        if os.environ.get("DMOLE_TRACEBACK"):
            raise
        _print_error(one_line(reported))
        return 1


def _explained(error: Exception) -> Exception:
    """Return one line for the loss of a data worker, which torch reports anywhere."""
    if not isinstance(error, RuntimeError):
        return error
    from dmole.data.workers import explain_lost_worker

    return explain_lost_worker(error)


def _print_error(message: str) -> None:
    if message:
        print(f"dmole: {message}", file=sys.stderr)


def _later(verb: str) -> Callable[[list[str]], int | None]:
    """Return a verb whose module ``dmole.cli.<verb>`` is imported when it runs."""
    name = verb.replace("-", "_")

    def run(words: list[str]) -> int | None:
        status: int | None = getattr(import_module(f"dmole.cli.{name}"), f"run_{name}")(words[1:])
        return status

    return run


def _configs(words: list[str]) -> None:
    from dmole.cli.configs import run_configs

    run_configs(words[1:])


def _completion(words: list[str], verbs: list[str]) -> None:
    from dmole.cli.completion import run_completion

    run_completion(words[1:], verbs)


def _sequence(words: list[str]) -> int | None:
    from dmole.cli.lightning import run_sequence

    if words[0] == "fit" and any(word.startswith("--dry_memory") for word in words):
        from dmole.cli.plan import run_plan, split_dry_memory

        dry, words = split_dry_memory(words)
        if dry:
            return run_plan(words[1:])
    run_sequence(words)
    return None


def _add(words: list[str]) -> None:
    from dmole.cli.add import run_add

    run_add(words[1:])


def _evaluate(words: list[str]) -> None:
    from dmole.cli.finished import run_evaluate

    run_evaluate(words[1:])


def _predict(words: list[str]) -> None:
    from dmole.cli.finished import run_predict

    run_predict(words[1:])


def _compare(words: list[str]) -> None:
    from pathlib import Path

    from dmole.cli.arguments import ArgumentParser
    from dmole.report.compare import compare
    from dmole.report.identity import CHECKS

    parser = ArgumentParser("dmole compare", description="Several runs side by side.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders; seeds of a method group")
    parser.add_argument("--output", type=Path, default=Path("comparison"), help="result folder")
    parser.add_argument(
        "--allow",
        action="extend",
        default=[],
        type=lambda text: [name.strip() for name in text.split(",") if name.strip()],
        metavar="WHAT[,WHAT]",
        help=f"compare runs although they differ in: {', '.join(CHECKS)}",
    )
    parser.add_argument(
        "--counterparts",
        action="store_true",
        help="add a table of the figures that other libraries print: MFN, FAA, BWT/T, MAP, MIF",
    )
    parser.add_argument(
        "--reference",
        metavar="METHOD",
        help="add the paired differences of all methods to this one, with 95 %% intervals",
    )
    options = parser.parse_args(words[1:])
    compare(
        options.runs,
        options.output,
        options.allow,
        counterparts=options.counterparts,
        reference=options.reference,
    )


def _score(words: list[str]) -> None:
    from dmole.cli.score import run_score

    run_score(words[1:])


def _experts(words: list[str]) -> None:
    from dmole.cli.experts import run_experts

    run_experts(words[1:])


def _data(words: list[str]) -> int | None:
    if words[1:2] == ["check"]:
        from dmole.cli.check import run_check

        return run_check(words[2:])
    if words[1:2] == ["export-tasks"]:
        from dmole.cli.export_tasks import run_export_tasks

        run_export_tasks(words[2:])
        return None
    _make_data(words)
    return None


def _make_data(words: list[str]) -> None:
    from pathlib import Path

    from dmole.benchmarks.init import guided_benchmarks, init_benchmark
    from dmole.cli.arguments import ArgumentParser
    from dmole.demo.examples import make_example

    parser = ArgumentParser("dmole data", description="Data of the examples, and checks of data.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    make = verbs.add_parser("make-example", help="real images of installed packages as tasks")
    make.add_argument("output", type=Path, help="folder to write; must be absent or empty")
    kinds = make.add_mutually_exclusive_group()
    for kind, text in (
        ("alike", "six tasks that share one question"),
        ("one_wording", "eight tasks about photographs in one wording, see --package"),
        ("photographs", "six tasks about photographs, see --package"),
    ):
        kinds.add_argument(f"--{kind}", dest="kind", action="store_const", const=kind, help=text)
    make.set_defaults(kind="mixed")
    make.add_argument(
        "--package", type=Path, help="Debian package of the photographs; else apt-get downloads it"
    )
    make.add_argument("--train_size", type=int, default=1500, help="most training samples per task")
    make.add_argument("--test_size", type=int, default=250, help="most test samples per task")
    make.add_argument("--seed", type=int, default=0, help="seed of the choice of samples")
    verbs.add_parser("check", help="check every item, image and length of the tasks' files")
    verbs.add_parser("export-tasks", help="the tasks of a config as tasks of lmms-eval")
    init = verbs.add_parser("init", help="the folders of a benchmark and a guide to fill them")
    init.add_argument("benchmark", help=", ".join(guided_benchmarks()))
    init.add_argument("output", type=Path, help="folder to write; must be absent or empty")
    init.add_argument("--miniature", action="store_true", help="fill it with a few tiny samples")
    init.add_argument("--force", action="store_true", help="add what is missing to the folder")
    options = parser.parse_args(words[1:])
    if options.verb == "init":
        flags = {"miniature": options.miniature, "force": options.force}
        made = init_benchmark(options.benchmark, options.output, **flags)
        folder = visible(str(options.output))
        print(f"{folder}: {len(made)} folders made; see {folder}/README.md")
        return
    tasks = make_example(
        options.output,
        kind=options.kind,
        package=options.package,
        train_size=options.train_size,
        test_size=options.test_size,
        seed=options.seed,
    )
    print(f"{visible(str(options.output))}: {', '.join(task.name for task in tasks)}")


if __name__ == "__main__":
    sys.exit(main())
