"""The edits of ``dmole experts`` that make a new run folder: remove, rename, import."""

from __future__ import annotations

import argparse
import logging
import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from dmole.cli.finished import cli_of_run
from dmole.cli.lightning import ContinualCLI, configure_logging
from dmole.cli.trust import take_trusted
from dmole.editing.bringing_in import add_stage, check_receives, import_expert, new_task
from dmole.editing.draft import Draft, seal, take_evaluation, write_draft
from dmole.editing.fitting import fit_entry, samples_task, save_adapter
from dmole.editing.outcome import outcome
from dmole.editing.renaming import carry_results, rename_expert
from dmole.editing.source import OpenRun, open_run
from dmole.editing.taking_out import remove_experts
from dmole.messages import show
from dmole.run.loading import as_config
from dmole.run.run_folder import finished_folder, next_version
from dmole.trainer import ContinualTrainer

log = logging.getLogger("dmole")

_ACCEPT = re.compile(r"--trainer\.accept_changes(=|\s+)(true|True)")


@dataclass
class Edit:
    """One edit of a run.

    Args:
        options: The parsed command line.
        overrides: Flags for trainer, model and data.
        trusted: Modules outside dmole whose classes the runs may name.
    """

    options: argparse.Namespace
    overrides: list[str]
    trusted: tuple[str, ...]
    _cli: ContinualCLI | None = field(default=None, init=False)

    def cli(self, draft: Draft) -> ContinualCLI:
        """Return trainer, module and data of the edited run; the base model is loaded once.

        Raises:
            ValueError: If the trainer has several devices: each process would make the run folder.
        """
        if self._cli is None:
            config = as_config(draft.settings)
            cli = cli_of_run(draft.settings, config, self.overrides, self.trusted)
            devices = cli.trainer.num_devices * cli.trainer.num_nodes
            if devices > 1:
                raise ValueError(
                    f"dmole experts uses one device, not {devices}: leave out --trainer.devices, "
                    "or give --no_evaluation and evaluate the new run with dmole evaluate"
                )
            self._cli = cli
        return self._cli


def run_edit(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Make the run folder of an edit."""
    configure_logging()
    words, trusted = take_trusted(overrides)
    edit = Edit(options, words, trusted)
    source = open_run(options.run, trusted)
    output = options.output or next_version(options.run)
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        draft = _draft(edit, source, temporary)
        folder = stack.enter_context(finished_folder(output, writes=True))
        write_draft(draft, folder)
        if options.verb == "rename":
            results = carry_results(source, folder, options.old, options.new)
            seal(draft, folder, results)
        elif not options.no_evaluation:
            _evaluate(edit, draft, folder)
            show(outcome(draft, folder))
    log.info("the new run is in %s", output)


def _draft(edit: Edit, source: OpenRun, temporary: Path) -> Draft:
    options = edit.options
    if options.verb == "remove":
        return remove_experts(source, options.names)
    if options.verb == "rename":
        return rename_expert(source, options.old, options.new)
    if options.from_adapter is not None:
        return _from_adapter(edit, source, temporary)
    return _from_run(edit, source)


def _from_run(edit: Edit, source: OpenRun) -> Draft:
    options = edit.options
    if len(options.source) != 2:
        raise ValueError(
            "import needs FROM_RUN NAME, or --from_adapter DIR --as NEW --samples FILE"
        )
    run, name = Path(options.source[0]), options.source[1]
    new = options.new or name
    other = open_run(run, edit.trusted)
    fitted = options.samples is not None
    accept = _ACCEPT.search(" ".join(edit.overrides)) is not None
    draft = import_expert(source, other, name, new, fitted=fitted, accept=accept)
    if fitted:
        _fit(edit, draft, new)
    return draft


def _from_adapter(edit: Edit, source: OpenRun, temporary: Path) -> Draft:
    options = edit.options
    for flag, value in (("--as NEW", options.new), ("--samples FILE", options.samples)):
        if value is None:
            raise ValueError(f"--from_adapter needs {flag}")
    if options.source:
        raise ValueError("import takes either FROM_RUN NAME or --from_adapter DIR")
    new = options.new
    check_receives(source, new)
    draft = Draft.of(source)
    task: dict[str, Any] = {
        "name": new,
        "train": options.samples,
        "test": options.test or options.samples,
        "image_root": options.image_root,
        "metric": options.metric,
        "prompt_suffix": options.prompt_suffix,
        "max_new_tokens": options.max_new_tokens,
    }
    new_task(draft, task)
    add_stage(draft, new, (new,))
    draft.edit = {"verb": "import", "experts": [new], "from": "adapter"}
    save_adapter(draft, new, options.from_adapter, edit.cli(draft).model, temporary / new)
    _fit(edit, draft, new)
    return draft


def _fit(edit: Edit, draft: Draft, expert: str) -> None:
    """Fit the router entry of an expert to the samples that the command line names."""
    options, cli = edit.options, edit.cli(draft)
    tasks = next(stage.tasks for stage in draft.stages if stage.expert == expert)
    like = next(task for task in draft.tasks if task["name"] == tasks[0])
    task = samples_task(like, options.samples, options.image_root)
    trainer = cast("ContinualTrainer", cli.trainer)
    fit_entry(draft, expert, task, trainer.sequence, cli.model, cli.datamodule)


def _evaluate(edit: Edit, draft: Draft, folder: Path) -> None:
    """Evaluate an edited run and move the results into its folder."""
    cli, output = edit.cli(draft), folder / "evaluation"
    trainer = cast("ContinualTrainer", cli.trainer)
    trainer.evaluate(cli.model, cli.datamodule, run=folder, output=output)
    take_evaluation(draft, folder, output)
