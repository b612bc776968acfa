"""Run ``dmole fit`` with the clock of the processor, and print what the run cost as JSON.

    python -m experiments.speed.watched_fit [--first_step] ARGUMENTS OF FIT

Prints one line: the processor seconds of this process, interpreter and imports included, and the
number of answers generated. ``timing.json`` of the run then has processor seconds too. With
``--first_step`` the process ends after the first training step.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from types import SimpleNamespace
from typing import Any


def main(arguments: list[str]) -> int:
    """Run the verb and return its exit status."""
    import dmole.run.clock
    from dmole.cli.main import main as command
    from dmole.models import Backbone
    from dmole.module import ContinualModule

    clock: Any = dmole.run.clock
    clock.time = SimpleNamespace(perf_counter=time.process_time)
    first, answers = arguments[0] == "--first_step", 0
    generate = Backbone.generate_tokens

    def counting(self: Backbone, inputs: dict[str, Any], *more: Any, **options: Any) -> Any:
        nonlocal answers
        answers += len(inputs["input_ids"])
        return generate(self, inputs, *more, **options)

    def leave(*_: Any, **__: Any) -> None:
        _report(answers)
        os._exit(0)

    Backbone.generate_tokens = counting  # type: ignore[method-assign]
    if first:
        ContinualModule.on_train_batch_end = leave  # type: ignore[method-assign]
    status = command(["fit", *arguments[first:]])
    _report(answers)
    return status


def _report(answers: int) -> None:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(usage.ru_utime + usage.ru_stime for usage in used)
    print(json.dumps({"seconds": seconds, "answers": answers}), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
