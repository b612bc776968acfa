"""The verbs that load a model, on top of LightningCLI."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only

from dmole._moved import current_path
from dmole.cli.config_files import name_config, replaced_sizes, resolve_configs
from dmole.cli.hints import Explanation, explain
from dmole.cli.nulls import null_setting
from dmole.cli.trust import (
    check_remote_code,
    check_trackers,
    classes_allowed,
    refusal,
    take_trusted,
)
from dmole.datamodule import ContinualDataModule
from dmole.messages import one_line, visible
from dmole.models.placement import loading_on
from dmole.module import ContinualModule
from dmole.run.device import device_of_process
from dmole.run.lightning_private import NoCheckpointArguments
from dmole.run.model_file import CONFIG_FILE, MODEL_FILE, write_model_file
from dmole.run.run_files import RunFile
from dmole.run.state import SequenceState
from dmole.storage.files import atomic_path
from dmole.trainer import ContinualTrainer

log = logging.getLogger("dmole")


class ConfigError(ValueError):
    """An error in config or flags.

    Args:
        explanation: The error and the setting that it is about.
    """

    def __init__(self, explanation: Explanation) -> None:
        super().__init__(explanation.text)
        self.explanation = explanation


class RunConfig(SaveConfigCallback):
    """Writes ``config.yaml`` atomically; a resumed run replaces it by its current config."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **options: Any) -> None:
        super().__init__(parser, config, **options)
        # the parser imports the classes to write them, which only `classes_allowed` lets it
        self._text: str = parser.dump(config, skip_none=False)

    def config_values(self) -> dict[str, Any]:
        """Return the resolved config, which must be the same on all ranks."""
        values: dict[str, Any] = yaml.safe_load(self._text)
        return values

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the resolved config into the run folder, and what evaluation needs of it."""
        state = cast("ContinualTrainer", trainer).sequence
        state.put(*self.run_files(state, cast("ContinualModule", pl_module)))

    def run_files(self, state: SequenceState, module: ContinualModule) -> Iterator[RunFile]:
        """Return ``config.yaml``, whose folders differ between equal runs, and ``model.json``."""

        def write(run: Path) -> None:
            with atomic_path(run / CONFIG_FILE) as temporary:
                temporary.write_text(self._text, encoding="utf-8")

        yield RunFile(CONFIG_FILE, write, verified=False)
        yield RunFile(MODEL_FILE, lambda run: write_model_file(run, self.config_values()))


class ContinualCLI(NoCheckpointArguments, LightningCLI):
    """Builds trainer, module and data from YAML and flags.

    Args:
        arguments: Arguments of the command line, without ``--trust_classes``.
        run: Whether the first argument is a verb to run.
        trusted: Modules outside dmole whose classes may be named.

    Raises:
        ConfigError: If a config or flag is not valid, or names a class that is not allowed.
    """

    def __init__(
        self, arguments: list[str], *, run: bool = True, trusted: Sequence[str] = ()
    ) -> None:
        self._words = arguments
        if run:  # a parser takes a third of a second; that of another verb is not needed
            requested = {arguments[0]: self.subcommands()[arguments[0]]}
            self.subcommands = lambda: requested  # type: ignore[method-assign]
        with classes_allowed(trusted):
            try:
                self._parse_and_run(arguments, run)
            except ArgumentError as error:
                explanation = explain(str(error), self.setting_names())
                denied = refusal(str(error))
                raise ConfigError(
                    replace(explanation, text=denied) if denied else explanation
                ) from error

    def _parse_and_run(self, arguments: list[str], run: bool) -> None:
        # the arguments are those of the command line with resolved configs, as the warning demands
        warnings.filterwarnings("ignore", ".*args parameter is intended to run from within.*")
        super().__init__(
            ContinualModule,
            ContinualDataModule,
            trainer_class=ContinualTrainer,
            seed_everything_default=0,
            save_config_callback=RunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            parser_kwargs={"exit_on_error": False}
            | {verb: {"exit_on_error": False} for verb in self.subcommands()},
            args=arguments,
            run=run,
            load_from_checkpoint_support=False,  # a run is rebuilt from its config.yaml
        )

    def setting_names(self) -> list[str]:
        """Return the dotted names of the verb's settings, without those of chosen classes."""
        (parser,) = getattr(self, "_subcommand_parsers", {"": self.parser}).values()
        options = [name for action in parser._actions for name in action.option_strings]
        names = {name.removeprefix("--") for name in options if name.startswith("--")}
        return sorted(name for name in names if not name.endswith((".help", "+")))

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the verbs, each with the arguments that the CLI fills in."""
        return {"fit": {"model", "datamodule"}, "allocate": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Use one seed for initial experts, order of the data and dropout."""
        for target in ("model.seed", "data.seed"):
            parser.link_arguments("seed_everything", target, compute_fn=int)

    def instantiate_classes(self) -> None:
        """Build trainer, module and data; the base model is loaded on the device of the process.

        Raises:
            ValueError: If a class refuses its arguments; without the list of the other types
                that a setting may have.
        """
        settings = self._get(self.config, "trainer", default={})
        try:
            with loading_on(device_of_process(settings)):
                super().instantiate_classes()
        except ValueError as error:
            text = explain(str(error), ()).text
            if text == one_line(error):
                raise
            raise ValueError(text) from error

    def before_instantiate_classes(self) -> None:
        """Check the settings, and replace old class paths by those of the run's ``config.yaml``."""
        check_remote_code(self.config, self._words)
        check_trackers(self.config, self._words)
        (parser,) = getattr(self, "_subcommand_parsers", {"": self.parser}).values()
        if null := null_setting(parser._actions, lambda key: self._get(self.config, key, 0)):
            raise ConfigError(null)
        _rename_classes(self.config)


def _rename_classes(config: Any) -> None:
    """Replace old class paths in a parsed config."""
    for node in config if isinstance(config, list) else [config]:
        if isinstance(node, (Namespace, dict)):
            for key, value in vars(node).items() if isinstance(node, Namespace) else node.items():
                if key == "class_path" and isinstance(value, str):
                    node[key] = current_path(value)
                else:
                    _rename_classes(value)


def run_sequence(words: list[str]) -> None:
    """Run ``fit`` or ``allocate``."""
    configure_logging()
    with open_configs(words) as (arguments, configs, trusted):
        for path in configs:
            log.info("config %s", path)
        for text in replaced_sizes(configs):
            log.info("%s", text)
        build(arguments, trusted)


@contextmanager
def open_configs(words: list[str]) -> Iterator[tuple[list[str], list[Path], tuple[str, ...]]]:
    """Yield the arguments with paths of configs, the configs and the trusted modules.

    Trusted modules are also found beside the configs.

    Raises:
        ValueError: If the body of the ``with`` statement raises a `ConfigError`; names the file
            that causes it.
    """
    arguments, configs = resolve_configs(words)
    arguments, trusted = take_trusted(arguments)
    if trusted:
        sys.path += [str(path.resolve().parent) for path in configs]
    try:
        yield arguments, configs, trusted
    except ConfigError as error:
        raise ValueError(name_config(error.explanation, configs, arguments)) from error


class _Names(ContinualCLI):
    """Ends once the parser is complete."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        raise _NamesFoundError(self.setting_names())


class _NamesFoundError(Exception):
    pass


def setting_names() -> list[str]:
    """Return the dotted names of the settings of ``fit``."""
    try:
        _Names(["fit"])
    except _NamesFoundError as found:
        return list(found.args[0])
    raise AssertionError("the parser was not made")


def build(
    arguments: list[str],
    trusted: Sequence[str],
    *,
    run: bool = True,
    kind: type[ContinualCLI] = ContinualCLI,
) -> ContinualCLI:
    """Build the CLI, or a ``kind`` of it, and, if ``run``, run its verb."""
    try:
        return kind(arguments, run=run, trusted=trusted)
    except MisconfigurationException as error:  # from Lightning: devices, precision, strategy
        raise ValueError(str(error)) from error


class _Console(logging.Handler):
    """Prints to the current standard error, not to the one at the time of configuration.

    Standard output has what a verb is for: answers, tables, configs.
    """

    def emit(self, record: logging.LogRecord) -> None:
        print(visible(self.format(record)), file=sys.stderr, flush=True)


@rank_zero_only
def _add_handler(handler: logging.Handler) -> None:
    log.addHandler(handler)


def configure_logging() -> None:
    """Print the log of this package, and hide information messages of the libraries."""
    if not log.handlers:
        _add_handler(_Console())
        log.setLevel(logging.INFO)
        log.propagate = False
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
