"""The data of a config, for the verbs that load no model."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningArgumentParser

    from dmole.data import Task
    from dmole.data.decoding import ImageOptions
    from dmole.datamodule import ContinualDataModule
    from dmole.metrics import TaskMetric


def open_data(words: list[str]) -> tuple[ContinualDataModule, dict[str, Any]]:
    """Return the data of configs and flags, and all of their settings.

    Args:
        words: ``--config FILE`` once or several times, and flags.

    Raises:
        ValueError: If a setting is not valid; what ``fit`` would refuse is refused.
    """
    from dmole.cli.trust import classes_allowed
    from dmole.data.decoding import AS_STORED
    from dmole.datamodule import ContinualDataModule

    config, trusted = read_config(words)
    data = dict(config["data"])
    with classes_allowed(trusted):
        tasks = [_task(task) for task in data.pop("tasks")]
    data["images"] = _image_options(data.get("images")) or AS_STORED
    return ContinualDataModule(tasks, **data), config


def read_config(words: list[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the settings of configs and flags without building any object, and trusted modules."""
    from dmole.cli.lightning import ContinualCLI, configure_logging, open_configs

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
    with open_configs(words) as (arguments, _, trusted):
        settings = Settings(["fit", *arguments], trusted=trusted)
        config: dict[str, Any] = settings.config["fit"].as_dict()
    config["data"].pop("seed", None)  # follows seed_everything
    return config, trusted


def _task(settings: dict[str, Any]) -> Task:
    """Return the task that the settings of a config describe."""
    from dmole.data import Task

    names = {field.name for field in fields(Task)}
    known = {key: value for key, value in settings.items() if key in names}
    metric = _metric(settings["name"], settings["metric"])
    images = _image_options(settings.get("images"))
    return Task(**known | {"metric": metric, "images": images})


def _image_options(settings: dict[str, Any] | None) -> ImageOptions | None:
    from dmole.data.decoding import ImageOptions

    return None if settings is None else ImageOptions(**settings)


def _metric(task: str, metric: str | dict[str, Any]) -> str | TaskMetric:
    """Return the metric of a task: its name, or the object that the config describes."""
    from dmole.benchmarks.registry import build_metric

    try:
        if isinstance(metric, str):
            build_metric(metric)
            return metric
        return _instance(metric)
    except ValueError as error:
        raise ValueError(f"task {task!r}: {error}") from error


def _instance(metric: dict[str, Any]) -> TaskMetric:
    import jsonargparse

    from dmole.metrics import TaskMetric

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--metric", type=TaskMetric)
    try:
        made = parser.instantiate_classes(parser.parse_object({"metric": metric})).metric
    except jsonargparse.ArgumentError as error:
        raise ValueError(str(error)) from error
    assert isinstance(made, TaskMetric)  # the parser checks this
    return made
