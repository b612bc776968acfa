"""The verbs that load a model, on top of LightningCLI."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only

from dmole._moved import current_path
from dmole.cli.arguments import ArgumentParser
from dmole.cli.config_files import name_config, read_settings, resolve_configs
from dmole.datamodule import ContinualDataModule
from dmole.messages import json_text, visible
from dmole.module import ContinualModule
from dmole.predictor import Predictor, read_prompts
from dmole.run.lightning_private import NoCheckpointArguments
from dmole.run.run_files import RunFile
from dmole.run.state import SequenceState
from dmole.storage.files import atomic_path, write_json
from dmole.trainer import ContinualTrainer

log = logging.getLogger("dmole")


class ConfigError(ValueError):
    """An error in config or flags."""


class RunConfig(SaveConfigCallback):
    """Writes ``config.yaml`` atomically; a resumed run replaces it by its current config."""

    def config_values(self) -> dict[str, Any]:
        """Return the resolved config, which must be the same on all ranks."""
        values: dict[str, Any] = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        return values

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the resolved config into the run folder."""
        state = cast("ContinualTrainer", trainer).sequence
        state.put(*self.run_files(state, cast("ContinualModule", pl_module)))

    def run_files(self, state: SequenceState, module: ContinualModule) -> Iterator[RunFile]:
        """Return ``config.yaml``; its folders differ between equal runs."""

        def write(run: Path) -> None:
            text = self.parser.dump(self.config, skip_none=False)
            with atomic_path(run / "config.yaml") as temporary:
                temporary.write_text(text, encoding="utf-8")

        yield RunFile("config.yaml", write, verified=False)


class ContinualCLI(NoCheckpointArguments, LightningCLI):
    """Builds trainer, module and data from YAML and flags.

    Args:
        arguments: Arguments of the command line.
        run: Whether the first argument is a verb to run.
    """

    def __init__(self, arguments: list[str], *, run: bool = True) -> None:
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
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the verbs, each with the arguments that the CLI fills in."""
        return {"fit": {"model", "datamodule"}, "allocate": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Use one seed for initial experts, order of the data and dropout."""
        for target in ("model.seed", "data.seed"):
            parser.link_arguments("seed_everything", target, compute_fn=int)

    def before_instantiate_classes(self) -> None:
        """Replace old class paths, so that ``config.yaml`` of the run has current ones."""
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


_OVERRIDES = "Any setting of the run can be changed: --data.data_root DIR, --trainer.devices 2."


def run_sequence(words: list[str]) -> None:
    """Run ``fit`` or ``allocate``."""
    configure_logging()
    arguments, configs = resolve_configs(words)
    for path in configs:
        log.info("config %s", path)
    try:
        _build(arguments)
    except ConfigError as error:
        raise ValueError(name_config(str(error), configs, arguments)) from error


def run_evaluate(words: list[str]) -> None:
    """Compute the matrix of a finished run again."""
    configure_logging()
    parser = ArgumentParser("dmole evaluate", description=run_evaluate.__doc__, epilog=_OVERRIDES)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--split", default="test", choices=("test", "train"), help="which samples")
    parser.add_argument("--threshold_scale", type=float, help="factor on the router's thresholds")
    parser.add_argument("--output", type=Path, help="folder for the results; must not exist")
    options, overrides = parser.parse_known_args(words)
    config = read_config(options.run)
    if options.split == "train":  # tasks that are only scored have no training samples
        config["data"]["tasks"] = [t for t in config["data"]["tasks"] if not t.get("eval_only")]
    for task in config["data"]["tasks"]:
        if not task.get(options.split):
            raise ValueError(f"task {task['name']!r} has no {options.split} files")
        task["test"] = task[options.split]
    scale = options.threshold_scale
    name = f"evaluation_{options.split}" + (f"_x{scale:g}" if scale is not None else "")
    cli = _from_config(config, overrides)
    trainer = cast("ContinualTrainer", cli.trainer)
    trainer.evaluate(
        cli.model,
        cli.datamodule,
        run=options.run,
        output=options.output or options.run / name,
        threshold_scale=scale,
    )


def run_predict(words: list[str]) -> None:
    """Answer prompts with the experts and the router of a run."""
    configure_logging()
    parser = ArgumentParser("dmole predict", description=run_predict.__doc__, epilog=_OVERRIDES)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--image", type=Path, help="image of a single prompt")
    parser.add_argument("--prompt", help="a single prompt")
    parser.add_argument(
        "--input", type=Path, help="JSON: a list of {image, prompt}; images relative to the file"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write instead of printing")
    parser.add_argument("--max_new_tokens", type=int, default=32, help="most tokens of an answer")
    options, overrides = parser.parse_known_args(words)
    if (options.prompt is None) == (options.input is None):
        raise ValueError("predict needs either --prompt (and --image) or --input")
    if options.input is not None:
        prompts = read_prompts(options.input)
    else:
        prompts = [{"prompt": options.prompt, "image": options.image}]
    cli = _from_config(read_config(options.run), overrides)
    precision = cli.trainer.precision_plugin.forward_context  # the precision of the matrix
    predictor = Predictor(cli.model, cli.datamodule, options.run, precision)
    cli.model.to(cli.trainer.strategy.root_device)
    answers = predictor(prompts, options.max_new_tokens)
    if options.output is not None:
        write_json(options.output, answers)
    else:
        print(json_text(answers))


def read_config(run: Path) -> dict[str, Any]:
    """Return the config that made a run folder.

    Raises:
        ValueError: If the folder has no valid config.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{run} is no run folder: it has no config.yaml")
    config = read_settings(path)
    for key in ("trainer", "model", "data"):
        if not isinstance(config.get(key), dict):
            raise ValueError(f"{path} is not the config of a run: it has no {key}")
    tasks = config["data"].get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(t, dict) and "name" in t for t in tasks):
        raise ValueError(f"{path} is not the config of a run: it has no data.tasks")
    return {key: config.get(key) for key in ("seed_everything", "trainer", "model", "data")}


def _from_config(config: dict[str, Any], overrides: list[str]) -> ContinualCLI:
    if _trusts_code(config) and not any("trust_remote_code" in word for word in overrides):
        # the author of the run decided for their machine, not for this one
        raise ValueError(
            "the run's config.yaml sets trust_remote_code, which runs code of its base model: "
            "confirm it with --model.backbone.init_args.trust_remote_code true, or set it to false"
        )
    config["trainer"]["version"] = None  # do not write to the log of the finished run
    for part in ("model", "data"):
        config[part].pop("seed", None)  # follows seed_everything
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return _build(["--config", str(path), *overrides], run=False)


def _trusts_code(settings: Any) -> bool:
    """Return whether a config sets `trust_remote_code` to true anywhere."""
    if isinstance(settings, list):
        return any(map(_trusts_code, settings))
    if not isinstance(settings, dict):
        return False
    return bool(settings.get("trust_remote_code")) or any(map(_trusts_code, settings.values()))


def _build(arguments: list[str], *, run: bool = True) -> ContinualCLI:
    """Build the CLI and, if ``run``, run its verb."""
    try:
        return ContinualCLI(arguments, run=run)
    except ArgumentError as error:
        raise ConfigError(str(error)) from error
    except MisconfigurationException as error:  # from Lightning: devices, precision, strategy
        raise ValueError(str(error)) from error


class _Console(logging.Handler):
    """Prints to the current standard output, not to the one at the time of configuration."""

    def emit(self, record: logging.LogRecord) -> None:
        print(visible(self.format(record)), flush=True)


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
