"""What the outputs of a folder of cases must show; `experiments.cases` runs them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

Expectation = Callable[[str], str]
"""From the output of a ``run.sh`` to the reason why it is wrong; empty if it is right."""

_STATUS = re.compile(r"^(.+?): rc (\d+)(.*)$", re.MULTILINE)
TIMED_OUT = 124
"""Exit status of ``timeout``."""


@dataclass(frozen=True)
class Status:
    """A line ``name: rc N | last line`` of an output."""

    name: str
    code: int
    rest: str

    @property
    def said(self) -> str:
        """The last line of what ran."""
        return self.rest.partition("|")[2].strip()

    @property
    def clear(self) -> bool:
        """Whether it succeeded or ended with one line of dmole."""
        return self.code == 0 or self.said.startswith("dmole:")


def statuses(output: str, count: int) -> list[Status]:
    """Return the lines with an exit status.

    Raises:
        ValueError: If there are fewer than `count`; the case did not run as it should.
    """
    found = [Status(name, int(code), rest) for name, code, rest in _STATUS.findall(output)]
    if len(found) < count:
        raise ValueError(f"{len(found)} of {count} results were printed")
    return found


def first(problems: dict[str, bool]) -> str:
    """Return the first problem that holds."""
    return next((name for name, holds in problems.items() if holds), "")


def no_hang(output: str, count: int) -> str:
    """Return a line that hung, ended with a traceback or without one line of dmole."""
    for each in statuses(output, count):
        problem = first(
            {
                "still runs at the time limit": each.code == TIMED_OUT,
                "traceback": bool(re.search(r"[1-9]\d* traceback|Traceback", each.rest)),
                f"ends with {each.said!r}": "|" in each.rest and not each.clear,
            }
        )
        if problem:
            return f"{each.name}: {problem}"
    return ""


def accept_changes_ignored(output: str) -> str:
    """A changed learning rate takes effect; another optimizer resumes or is refused in a line."""
    equal = re.search(r"equals the one with 3e-3: (\w+)", output)
    rate, sgd = statuses(output, 2)[-2:]
    return first(
        {
            "the experts were not compared": equal is None,
            f"the changed rate: rc {rate.code}": rate.code != 0,
            "the changed rate has no effect": equal is not None and equal[1] != "False",
            f"another optimizer: {sgd.said}": not sgd.clear,
        }
    )


def compare_injection(output: str) -> str:
    """No control or bidi character reaches the terminal, no formula the CSV file."""
    lines = output.splitlines()
    return first(
        {
            "no table was written": not any("method" in line for line in lines),
            "a control character is printed": "^[" in output or "^G" in output,
            "a bidi character is printed": "M-bM-^@M-." in output,
            "a cell is a formula": any(
                line.removeprefix('"').startswith(("=", "+", "@")) for line in lines
            ),
        }
    )


def ddp_silent_death(output: str) -> str:
    """The last words name the rank and how to resume."""
    code, _, said = output.partition("; all it said:")
    return first(
        {
            "rc 0": code.strip().endswith("rc 0"),
            "the lost rank is not named": "rank 1" not in said,
            "it does not say how to resume": "ckpt_path" not in said and "resume" not in said,
        }
    )


def evaluate_keyerror(output: str) -> str:
    """A subset or another order of experts is evaluated, or refused in a line."""
    return "KeyError" if "KeyError" in output else no_hang(output, 2)


def filesystems(output: str) -> str:
    """Weak file systems are used with a warning; a full disk names the file."""
    found = {each.name: each for each in statuses(output, 4)}
    for name in ("nolock", "fsync_dir", "chmod"):
        if found[name].code:
            return f"{name}: {found[name].said}"
    quota = found["quota"]
    return first(
        {
            "quota: rc 0": quota.code == 0,
            f"quota: no file is named: {quota.said}": not quota.clear or "/" not in quota.said,
        }
    )


def fifo_hang(output: str) -> str:
    """No file makes `predict` wait or fill the memory."""
    ended = statuses(output, 3)
    return no_hang(output, 3) or next((f"{e.name}: rc 0" for e in ended if not e.code), "")


def lost_artefacts(output: str) -> str:
    """What was deleted is written again, or its loss ends the run."""
    deleted, resumed = statuses(output, 2)[:2]
    before, _, after = output.partition("expert and router deleted")
    listed = {line.strip() for line in before.splitlines()[1:]}
    missing = {"config.yaml", "paint", "count"} - listed
    for each, answer in ((deleted, before), (resumed, after)):
        last = answer.strip().splitlines()[-1]
        problem = first(
            {
                f"ends with {each.said!r}": not each.clear,
                f"rc 0, but predict says {last!r}": each.code == 0 and last.startswith("dmole:"),
            }
        )
        if problem:
            return f"{each.name}: {problem}"
    lost = f"{deleted.name}: rc 0 without {', '.join(sorted(missing))}"
    return lost if missing and deleted.code == 0 else ""


def moe_cl_resume(output: str) -> str:
    """A resumed run has the experts of an uninterrupted one, in their order."""
    orders = [json.loads(line) for line in output.splitlines() if line.startswith("[")]
    differences = [float(text) for text in re.findall(r"largest difference (\S+)", output)]
    return first(
        {
            "the resume failed": "resumed rc 0" not in output,
            "the experts were not compared": len(orders) != 2 or not differences,
            "the order of the experts differs": len(orders) == 2 and orders[0] != orders[1],
            f"tensors differ by {max(differences, default=0.0)}": any(differences),
        }
    )


def nan_gradient(output: str) -> str:
    """A gradient that is not finite is named, never kept, and the run can resume."""
    step, resumed, last, predicted = statuses(output, 4)[:4]
    named = [each for each in (step, last) if each.code and "gradient" not in each.said]
    return first(
        {
            f"the gradient is not named: {named[0].said if named else ''}": bool(named),
            f"the resume failed: {resumed.said}": resumed.code != 0,
            "rc 0, but predict refuses the run": last.code == 0 and predicted.code != 0,
        }
    )


def one_sample_task(output: str) -> str:
    """A task of one sample is learned, or reported by `data check`."""
    late = "embeddings (N, D)" in output or "Traceback" in output
    reported = re.search(r"[1-9]\d* errors?\b|^error ", output, re.MULTILINE) is not None
    return "found after the training only" if late or not (reported or "results" in output) else ""


def rce_config(output: str) -> str:
    """No class of a stranger's config is made."""
    ran = "uid=" in output or "No such file" not in output
    return "a command of the config ran" if ran else ""


def stale_cache(output: str) -> str:
    """A file that changed has another digest of its data."""
    digests = re.findall(r'"train": "(\w+)"', output)
    if len(digests) != 2:
        return f"{len(digests)} of 2 digests were printed"
    return "the changed file has the old digest" if digests[0] == digests[1] else ""


EXPECTED: dict[str, Expectation] = {
    "accept_changes_ignored": accept_changes_ignored,
    "compare_injection": compare_injection,
    "compare_tracebacks": lambda output: no_hang(output, 6),
    "ddp_silent_death": ddp_silent_death,
    "evaluate_keyerror": evaluate_keyerror,
    "fifo_hang": fifo_hang,
    "filesystems": filesystems,
    "lost_artefacts": lost_artefacts,
    "moe_cl_resume": moe_cl_resume,
    "nan_gradient": nan_gradient,
    "one_sample_task": one_sample_task,
    "rce_config": rce_config,
    "stale_cache": stale_cache,
}
