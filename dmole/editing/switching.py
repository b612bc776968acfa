"""Switches experts of a run off and on again, in the run folder itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dmole.run.learned import read_names, read_stages
from dmole.run.run_folder import RunLock
from dmole.storage.digests import read_digests
from dmole.storage.disabled import read_disabled, write_disabled
from dmole.storage.reading import read_json
from dmole.storage.versions import check_newest, check_past, read_updates

_TOGETHER = ("AllExpertsRouter", "SharedRouter", "TokenRouter")
"""Routers whose experts answer only together, or that have one expert for all samples."""


def switch_experts(run: Path, names: Sequence[str], *, off: bool) -> tuple[str, ...]:
    """Disable or enable experts of a run.

    ``evaluate`` and ``predict`` leave a disabled expert and its router entry out, as if the run had
    never learned it. No other file of the run changes, except for its lock.

    Args:
        run: The run folder.
        names: The experts.
        off: Whether they are disabled.

    Returns:
        All disabled experts of the run.

    Raises:
        ValueError: If the run does not have an expert, it is on or off already, all tasks share it,
            none would be left, a later version would be on without the one that it continues, or
            another process writes to the run.
    """
    known = read_names(run, read_digests(run))
    for name in names:
        if name not in known:
            raise ValueError(f"{run} has no expert {name!r}; it has {', '.join(known)}")
    if off:
        _check_separable(run, names)
    lock = RunLock(run, patience=1.0)
    lock.acquire()
    try:
        before = read_disabled(run)
        for name in names:
            if (name in before) == off:
                state = "disabled" if off else "enabled"
                raise ValueError(f"the expert {name!r} of {run} is {state} already")
        after = {*before, *names} if off else set(before) - set(names)
        updates = read_updates(run, known)
        if off:
            check_newest(run, sorted(after), updates)
        else:
            check_past(run, names, after, updates)
        if not set(known) - after - {stage.common for stage in read_stages(run) or []}:
            listed = ", ".join(names)
            raise ValueError(f"{run} needs an expert: it would have none without {listed}")
        write_disabled(run, tuple(name for name in known if name in after))
    finally:
        lock.release()
    return read_disabled(run)


def _check_separable(run: Path, names: Sequence[str]) -> None:
    content = read_json(run / "router" / "router.json", "router")
    kind = content.get("router") if isinstance(content, dict) else None
    if kind in _TOGETHER:
        raise ValueError(
            f"the experts of {run} answer only together ({kind}): none can be disabled"
        )
    for name in (stage.common for stage in read_stages(run) or []):
        if name in names:
            raise ValueError(f"the expert {name!r} of {run} is shared by all tasks: it stays on")
