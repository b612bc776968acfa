"""``dmole plan``: memory, disk and hours of a run, before it is started."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dmole.cli.arguments import ArgumentParser, require_config
from dmole.cli.lightning import ContinualCLI, build, open_configs
from dmole.data.formats import Split
from dmole.messages import show
from dmole.planning.advice import advise
from dmole.planning.config import ASSUMED, read_setup
from dmole.planning.hardware import GPUS, UTILIZATION, find_gpu
from dmole.planning.hours import hours
from dmole.planning.images import ImageTokens
from dmole.planning.reckoning import GIB, Reckoning
from dmole.planning.setup import Lengths
from dmole.planning.shape import model_shape
from dmole.planning.table import Plan
from dmole.storage.files import write_json

DRY_MEMORY = "--dry_memory"
GPU = "a100-80gb"
RESERVED = 0.1
"""Share of a GPU that is left to kernels, the allocator and communication."""


class _ParsedCLI(ContinualCLI):
    """Reads configs and flags, and builds nothing."""

    def instantiate_classes(self) -> None:
        self.values: dict[str, Any] = yaml.safe_load(self.parser.dump(self.config, skip_none=False))


def run_plan(words: list[str]) -> int:
    """Reckon memory, disk and hours of ``fit`` from a config and the header of its base model.

    Returns:
        0 if every phase fits on the GPU, else 1.
    """
    parser = _parser()
    options, arguments = parser.parse_known_args(words)
    if not {"-h", "--help"} & set(words):
        require_config(arguments, "plan")
    plan = make_plan(options, arguments)
    show(plan.text())
    if options.json is not None:
        write_json(options.json, plan.values())
    return 0 if plan.fits else 1


def split_dry_memory(words: Sequence[str]) -> tuple[bool, list[str]]:
    """Return whether the words of ``fit`` ask for a plan, and the words without that flag.

    Raises:
        ValueError: If the value of the flag is neither true nor false.
    """
    dry, rest = False, []
    pending = list(words)
    while pending:
        word = pending.pop(0)
        flag, equals, value = word.partition("=")
        if flag != DRY_MEMORY:
            rest.append(word)
            continue
        if not equals and pending and pending[0].lower() in ("true", "false"):
            value = pending.pop(0)
        if value.lower() not in ("", "true", "false"):
            raise ValueError(f"{DRY_MEMORY} must be true or false, got {value!r}")
        dry = value.lower() != "false"
    return dry, rest


def make_plan(options: argparse.Namespace, arguments: list[str]) -> Plan:
    """Return the plan of a run.

    Args:
        options: Flags of ``plan``.
        arguments: Configs and flags of ``fit``.

    Raises:
        ValueError: If a config, a flag or the base model cannot be reckoned with.
    """
    sizes: dict[Split, int | None]
    sizes = {"train": options.train_samples, "test": options.test_samples}
    setup = read_setup(read_config(arguments), devices=options.devices, sizes=sizes)
    shape = model_shape(setup.name_or_path, setup.patterns, options.model_config)
    lengths = Lengths(options.text_tokens, options.answer_tokens, options.images)
    reckoning = Reckoning(shape, setup, lengths, _image(options))
    gpu = find_gpu(options.gpu)
    usable = (1 - RESERVED) * gpu.gib if options.memory_gib is None else options.memory_gib
    return Plan(
        reckoning=reckoning,
        gpu=gpu,
        usable=usable * GIB,
        hours=hours(reckoning, gpu, options.utilization),
        utilization=options.utilization,
        advice=advise(reckoning, usable * GIB),
    )


def read_config(arguments: list[str]) -> dict[str, Any]:
    """Return the resolved config that configs and flags of ``fit`` give, with all defaults.

    Raises:
        ValueError: If a config or a flag is not valid.
    """
    with open_configs(arguments) as (resolved, _, trusted):
        cli = build(resolved, trusted, run=False, kind=_ParsedCLI)
    assert isinstance(cli, _ParsedCLI)
    return cli.values


def _image(options: argparse.Namespace) -> ImageTokens | None:
    """Return the size of an image, if it is given.

    Raises:
        ValueError: If only a part of it is given.
    """
    if options.patches is None and options.image_tokens is None:
        return None
    if options.patches is None or options.image_tokens is None:
        raise ValueError("--patches and --image_tokens go together")
    return ImageTokens(options.patches, 1, options.image_tokens)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "dmole plan",
        description=str(run_plan.__doc__).splitlines()[0],
        epilog="All settings of fit can be given: --config FILE, --data.batch_size 4, ...",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--gpu", default=GPU, help=f"name of the GPU, by default {GPU}: {', '.join(GPUS)}")
    text = "memory that may be used, in GiB; by default 0.9 of the GPU's"
    add("--memory_gib", type=_positive_float, help=text)
    text = "GPUs of a node in place of trainer.devices, of which auto counts as 1"
    add("--devices", type=_positive, help=text)
    add("--model_config", help="config.json of the base model, its folder, or a known name")
    add("--text_tokens", type=_positive, default=128, help="tokens of question and answer (128)")
    add("--answer_tokens", type=_positive, default=16, help="tokens of the answer alone (16)")
    add("--images", type=_positive, default=1, help="images of a sample (1)")
    add("--patches", type=_positive, help="tokens of an image in the vision encoder")
    add("--image_tokens", type=_positive, help="tokens of an image in the language model")
    for split, size in ASSUMED.items():
        text = f"{split} samples of a task whose size is not known; default {size}"
        add(f"--{split}_samples", type=_positive, help=text)
    text = f"share of the peak rate that is reached ({UTILIZATION})"
    add("--utilization", type=_positive_float, default=UTILIZATION, help=text)
    add("--json", type=Path, help="file to write the plan to")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def _positive_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return number
