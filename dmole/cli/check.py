"""The verb ``data check``: examines the data of a config without loading its model."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole.cli.arguments import ArgumentParser
from dmole.messages import visible

if TYPE_CHECKING:
    import argparse

    from lightning.pytorch.cli import LightningArgumentParser

    from dmole.doctor import BaseModel

_DESCRIPTION = """\
Examine all data files of a config before anything is trained: images that are missing or broken,
malformed items, repeated ids, training questions in the test set, samples that are too long, test
sets with one answer, split sizes. Exits with 1 if there is an error; warnings do not fail."""


def run_check(words: list[str]) -> int:
    """Run ``data check`` and return the exit status: 1 if the data has errors."""
    options, rest = _parse(words)
    from dmole.data import Task
    from dmole.datamodule import ContinualDataModule
    from dmole.doctor import CheckOptions, TokenLimit, as_json, as_text, check_tasks
    from dmole.storage.files import write_json

    config = _read_config(rest)
    data = config["data"]
    names = {field.name for field in fields(Task)} - {"metric"}
    tasks = []
    for task in data.pop("tasks"):
        if isinstance(task["metric"], str):
            _check_metric(task["name"], task["metric"])
        tasks.append(Task(**{key: value for key, value in task.items() if key in names}))
    module = ContinualDataModule(tasks, **data)  # refuses what `fit` would refuse
    router, least = _router_limit(config)
    report = check_tasks(
        tasks,
        Path(data["data_root"] or "."),
        CheckOptions(
            limit=options.limit,
            processes=options.processes,
            decode_images=not options.no_images,
            model=None if options.no_tokens else _base_model(config["model"]),
            tokens=TokenLimit(module.max_length, cut=module.on_too_long == "truncate"),
            router=router,
            least_samples=least,
        ),
    )
    if options.json == "-":
        json.dump(as_json(report), sys.stdout, indent=2)
        print()
    else:
        print(visible(as_text(report), keep="\n"))
    if options.json not in (None, "-"):
        write_json(Path(options.json), as_json(report))
    return 1 if report.count("error") else 0


def _parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    from dmole.doctor.pool import available_processes

    parser = ArgumentParser(
        "dmole data check",
        usage="dmole data check --config FILE [--config FILE ...] [--key value ...] [options]",
        description=_DESCRIPTION,
        epilog="Any key of the configs can be set as in `dmole fit`: --data.max_length 2048.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON; - prints it")
    parser.add_argument("--limit", type=int, default=20, help="most lines of a kind and file")
    parser.add_argument(
        "--processes",
        type=int,
        default=available_processes(),
        help="worker processes, by default one per processor; 0 uses the main process",
    )
    parser.add_argument("--no_images", action="store_true", help="do not decode the images")
    parser.add_argument("--no_tokens", action="store_true", help="do not load a processor")
    options, rest = parser.parse_known_args(words)
    for key, least in (("limit", 0), ("processes", 0)):
        if getattr(options, key) < least:
            raise ValueError(f"--{key} must be at least {least}, got {getattr(options, key)}")
    if not any(word.split("=")[0] in ("--config", "-c") for word in rest):
        raise ValueError("no config is given: dmole data check --config FILE")
    return options, rest


def _read_config(words: list[str]) -> dict[str, Any]:
    """Return the settings of configs and flags without building any object."""
    from jsonargparse import ArgumentError

    from dmole.cli.config_files import name_config, resolve_configs
    from dmole.cli.lightning import ContinualCLI, configure_logging

    class Settings(ContinualCLI):
        """Reads the settings of ``fit`` only."""

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            """Make the settings of the model optional."""
            super().add_arguments_to_parser(parser)
            for action in parser._actions:
                action.required = action.required and not action.dest.startswith("model.")

        def _set_seed(self) -> None:
            """Leave the random generators unchanged."""

        def instantiate_classes(self) -> None:
            """Do not build model, trainer and data."""

        def _run_subcommand(self, subcommand: str) -> None:
            """Do not run the verb."""

    configure_logging()
    arguments, configs = resolve_configs(words)
    try:
        config: dict[str, Any] = Settings(["fit", *arguments]).config["fit"].as_dict()
    except ArgumentError as error:
        raise ValueError(name_config(str(error), configs, arguments)) from error
    config["data"].pop("seed", None)  # follows seed_everything
    return config


def _check_metric(task: str, metric: str) -> None:
    from dmole.benchmarks.registry import build_metric

    try:
        build_metric(metric)
    except ValueError as error:
        raise ValueError(f"task {task!r}: {error}") from error


def _router_limit(config: dict[str, Any]) -> tuple[str, int]:
    """Return the router of a config and the samples that it needs of each task."""
    from dmole import routing

    stream = config["trainer"].get("stream") or {}
    if stream.get("class_path", "").endswith((".JointStream", ".ZeroShotStream")):
        return "", 1  # no stage consists of a single task
    node, router, least = config["model"].get("router"), "", 1
    while isinstance(node, dict):
        kind = getattr(routing, str(node.get("class_path")).rpartition(".")[2], None)
        number = getattr(kind, "least_samples", 1)  # a property of a router around another one
        if kind is not None and isinstance(number, int) and number > least:
            router, least = kind.__name__, number
        node = (node.get("init_args") or {}).get("router")
    return router, least


def _base_model(model: dict[str, Any]) -> BaseModel | None:
    """Return the base model that the config names; None without one or for another backbone."""
    from dmole.data.templates import PromptSettings
    from dmole.demo.tiny import TINY_PATH
    from dmole.doctor import BaseModel

    backbone = model.get("backbone")
    if backbone is None or backbone["class_path"] != "dmole.models.PretrainedBackbone":
        return None
    settings = backbone["init_args"]
    name = settings["name_or_path"]
    path = Path(name).expanduser()
    source = str(TINY_PATH) if name == "tiny" else str(path) if path.exists() else name
    variables = settings["template_variables"] or {}
    prompts = PromptSettings(settings["prompt_style"], variables, settings["template_date"])
    return BaseModel(source, settings["revision"], settings["trust_remote_code"], prompts)
