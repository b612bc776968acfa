"""The samples of a run: their answers over the stages, and their routing, computed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dmole.messages import one_line
from dmole.report.history import History, experts_of, read_history
from dmole.report.regenerated import Regenerated, read_regenerated
from dmole.storage.case_images import Case, read_case_images
from dmole.storage.reading import read_json
from dmole.storage.versions import UPDATES, checked_updates, newest_versions, versions_of

if TYPE_CHECKING:
    from dmole.report.kept_routing import KeptRouting, RoutedTask
    from dmole.report.page.record import RunRecord

MOST = 100
"""Most tasks whose samples are routed again."""


@dataclass(frozen=True)
class Rerouted:
    """The test samples of the last stage, routed again from the kept embeddings.

    Args:
        routing: The router; None if it cannot be read.
        tasks: Tasks whose embeddings were kept.
        problems: One line for each part that is missing.
    """

    routing: KeptRouting | None
    tasks: Mapping[str, RoutedTask] = field(default_factory=dict)
    problems: Sequence[str] = ()


def owners_of(record: RunRecord) -> dict[str, set[str]]:
    """Return the experts of each learned task, all versions of them."""
    stages = record.digests.stages if record.digests is not None else ()
    experts = [str(stage.get("expert")) for stage in stages]
    index = record.read("router/router.json", _read_updates)
    index = _configured_updates(record) if index is None else index
    newest = newest_versions(experts, index)
    owners: dict[str, set[str]] = {}
    for expert, tasks in record.tasks_of_expert.items():
        for task in tasks:
            owners.setdefault(task, set()).update(versions_of(newest[expert], index))
    return owners


def _configured_updates(record: RunRecord) -> dict[str, str]:
    """Return the version that each updated expert continues, of a folder without a router.

    The folder of an evaluation has none. The config says which tasks, ``<task>-v<N>``, update one.
    """
    configs = record.run.task_configs if record.run is not None else {}
    newest: dict[str, str] = {}  # expert by task that is updated
    updates: dict[str, str] = {}
    for stage in record.digests.stages if record.digests is not None else ():
        expert = str(stage.get("expert"))
        for task in map(str, stage.get("tasks") or ()):
            update = configs.get(task, {}).get("update") is True
            root = task.rpartition("-v")[0] if update else task
            past = newest.get(root, expert)
            if update and past != expert:
                updates[expert] = past
            newest[root] = expert
    return checked_updates(updates)


def _read_updates(path: Path) -> dict[str, str]:
    content = read_json(path, "router")
    return checked_updates(content.get(UPDATES, {}) if isinstance(content, dict) else {})


def history_of(record: RunRecord) -> History | None:
    """Return the answers of a run to its samples; None if there are none."""
    stages = record.predicted_stages
    if not stages:
        return None
    final_at: dict[str, int] = {}
    for stage, content in enumerate(record.digests.stages if record.digests else (), start=1):
        for key in ("expert", "common"):
            if isinstance(content.get(key), str):
                final_at[content[key]] = stage
    found = ((stage, record.predictions(stage)) for stage in reversed(stages))
    problems: list[str] = []
    images: dict[str, dict[str, Case]] = {}
    answers: list[Regenerated] = []
    try:
        images = read_case_images(record.folder)
    except ValueError as error:
        problems.append(one_line(error))
    try:
        answers = read_regenerated(record.folder, record.digests.files if record.digests else {})
    except ValueError as error:
        problems.append(one_line(error))
    history = read_history(found, final_at, owners_of(record), images)
    history.problems = problems
    for each in answers:
        known = history.known.get(each.task, {}).get(each.id, {})
        known.setdefault(frozenset(experts_of(each.gate_set)), each.score)
    return history


def reroute(record: RunRecord) -> Rerouted | None:
    """Return the samples of the last stage, routed again; None if there is nothing to route.

    That is so before the first stage, for runs of earlier versions and for routers that compare no
    losses.
    """
    from dmole.report.kept_routing import KeptRouting  # imports torch
    from dmole.run.learned import read_stages

    history, plan = record.history, read_stages(record.folder)
    learned = (plan or [])[: history.stages[-1]] if history is not None else []
    if history is None or not learned or not record.has("router/router.json"):
        return None
    fingerprints = (record.metrics or {}).get("fingerprints") or {}
    try:
        routing = KeptRouting(record.folder, learned, fingerprints)
    except (ValueError, OSError) as error:
        return Rerouted(None, problems=[one_line(error)])
    if not routing.fitted:
        return None
    tasks, problems = {}, []
    for task, ids in list(history.ids.items())[:MOST]:
        try:
            tasks[task] = routing.routed(task, ids)
        except (ValueError, OSError) as error:
            problems.append(one_line(error))
    return Rerouted(routing, tasks, problems)
