"""The verb ``data check``: examines the data of a config without loading its model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmole.cli.arguments import ArgumentParser, require_config
from dmole.messages import show

if TYPE_CHECKING:
    import argparse

    from dmole.doctor import BaseModel

_DESCRIPTION = """\
Examine all data files of a config before anything is trained: images that are missing, broken or
not shown as a viewer shows them, malformed items, keys that are not read, repeated ids, training
questions in the test set, samples that the base model's processor refuses or that are too long,
references that no answer can equal, test sets with one answer, split sizes. Every item takes the
path of `dmole fit` up to the model. Exits with 1 if there is an error; warnings do not fail."""


def run_check(words: list[str]) -> int:
    """Run ``data check`` and return the exit status: 1 if the data has errors."""
    options, rest = _parse(words)
    from dmole.cli.data_config import open_data
    from dmole.doctor import CheckOptions, TokenLimit, as_json, as_text, check_tasks
    from dmole.storage.files import write_json

    module, config = open_data(rest)
    model, missing = (None, None) if options.no_tokens else _base_model(config["model"])
    router, least = _router_limit(config)
    report = check_tasks(
        module.tasks,
        Path(config["data"]["data_root"] or "."),
        CheckOptions(
            limit=options.limit,
            processes=options.processes,
            decode_images=not options.no_images,
            model=model,
            no_model=missing,
            tokens=TokenLimit(module.max_length, cut=module.on_too_long == "truncate"),
            items=options.items,
            router=router,
            least_samples=least,
        ),
    )
    if options.json == "-":
        json.dump(as_json(report), sys.stdout, indent=2)
        print()
    else:
        show(as_text(report))
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
    parser.add_argument(
        "--items",
        type=int,
        help="most items of a file that are run through the processor, spread over it; default all",
    )
    parser.add_argument(
        "--no_images",
        action="store_true",
        help="do not decode images; lengths are then those of the texts",
    )
    parser.add_argument("--no_tokens", action="store_true", help="do not load a processor")
    options, rest = parser.parse_known_args(words)
    for key, least in (("limit", 0), ("processes", 0), ("items", 1)):
        if getattr(options, key) is not None and getattr(options, key) < least:
            raise ValueError(f"--{key} must be at least {least}, got {getattr(options, key)}")
    require_config(rest, "dmole data check")
    return options, rest


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


def _base_model(model: dict[str, Any]) -> tuple[BaseModel | None, str | None]:
    """Return the base model that the config names, or the reason why there is none."""
    from dmole.data.templates import PromptSettings
    from dmole.demo.tiny import TINY_PATH
    from dmole.doctor import BaseModel

    backbone = model.get("backbone")
    if backbone is None:
        return None, "the config names no base model"
    settings = backbone["init_args"]
    if "name_or_path" not in settings:
        return None, f"{backbone['class_path']} has no 'name_or_path' to load a processor from"
    name = settings["name_or_path"]
    path = Path(name).expanduser()
    source = str(TINY_PATH) if name == "tiny" else str(path) if path.exists() else name
    images = tuple(sorted((settings.get("image_settings") or {}).items()))
    trusted = bool(settings.get("trust_remote_code"))
    variables = settings.get("template_variables") or {}
    prompts = PromptSettings(settings.get("prompt_style"), variables, settings.get("template_date"))
    options = settings.get("revision"), trusted, prompts, images
    return BaseModel(source, *options, settings.get("image_backend")), None
