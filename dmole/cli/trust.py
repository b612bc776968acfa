"""What configs and flags may name: the classes of dmole, harmless ones of torch and Lightning.

jsonargparse checks each path twice, as it is written and as the object defines it, so that no
import of a module leads to another object. It refuses what is not on the list before the import.
"""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace, set_parsing_settings

from dmole.cli.hints import suggested_class
from dmole.messages import excerpt
from dmole.run.parts import defined_at, import_class, part_paths

log = logging.getLogger("dmole")

TRUST_FLAG = "--trust_classes"
REPORT_FLAG = "--trainer.report_to"
REMOTE_CODE_FLAG = "--model.backbone.init_args.trust_remote_code"

LIGHTNING = (
    "lightning.pytorch.callbacks.DeviceStatsMonitor",
    "lightning.pytorch.callbacks.GradientAccumulationScheduler",
    "lightning.pytorch.callbacks.LearningRateMonitor",
    "lightning.pytorch.callbacks.ModelSummary",
    "lightning.pytorch.callbacks.RichModelSummary",
    "lightning.pytorch.callbacks.RichProgressBar",
    "lightning.pytorch.callbacks.TQDMProgressBar",
    "lightning.pytorch.plugins.environments.LSFEnvironment",
    "lightning.pytorch.plugins.environments.LightningEnvironment",
    "lightning.pytorch.plugins.environments.SLURMEnvironment",
    "lightning.pytorch.plugins.environments.TorchElasticEnvironment",
    "lightning.pytorch.strategies.DDPStrategy",
    "lightning.pytorch.strategies.SingleDeviceStrategy",
)
"""Classes of Lightning that take plain settings.

Left out are those that call a function named by the config (``LambdaCallback``), write to a path
of its choice (loggers, profilers, checkpoints) or send data away (loggers of services).
"""

STRATEGIES = ("dmole.strategies.ShardedBaseStrategy",)
"""Strategies of this package; their settings are those of ``DDPStrategy``."""

DEFAULTS = ("dmole.module._adamw",)
"""Functions that are defaults of settings, which the parser reads like those of a config."""


@contextmanager
def classes_allowed(trusted: Sequence[str] = ()) -> Iterator[None]:
    """Let configs and flags name only known classes in the body of a ``with`` statement.

    Args:
        trusted: Further modules, packages or classes.
    """
    known = set(_known_paths())
    set_parsing_settings(
        instantiate_subclass_spec_in_any=False,
        import_path_denylist=["*"],
        import_path_allowlist=sorted(known | set(trusted)),
    )
    try:
        yield
    finally:
        set_parsing_settings(import_path_denylist=sorted(set(trusted) - known))


def _known_paths() -> Iterator[str]:
    yield from part_paths()
    yield from DEFAULTS
    for path in (*LIGHTNING, *STRATEGIES):
        yield from (path, defined_at(import_class(path)))
    for module, base in (
        (torch.optim, torch.optim.Optimizer),
        (torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler),
    ):
        for name, kind in vars(module).items():
            if inspect.isclass(kind) and issubclass(kind, base):
                yield from (f"{module.__name__}.{name}", defined_at(kind))


def take_trusted(words: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Split the command line into the words of the other flags and the trusted modules.

    Trusted modules are found in the working directory, which is searched last, so that no file
    there replaces an installed package.

    Args:
        words: The command line, where ``--trust_classes`` may occur several times.

    Returns:
        The words without the flag, and the modules, packages or classes that it names.

    Raises:
        ValueError: If the flag has no value, or a value that is no path of a user's module.
    """
    rest: list[str] = []
    values: list[str] = []
    iterator = iter(words)
    for word in iterator:
        flag, equals, value = word.partition("=")
        if flag != TRUST_FLAG:
            rest.append(word)
            continue
        values.append(value if equals else next(iterator, ""))
    trusted = [path.strip() for value in values for path in value.split(",")]
    for path in trusted:
        _check_path(path)
    if trusted:
        sys.path.append(str(Path.cwd()))
        log.warning("%s: configs may name classes of %s", TRUST_FLAG, ", ".join(trusted))
    return rest, tuple(trusted)


def _check_path(path: str) -> None:
    if not path or not all(part.isidentifier() for part in path.split(".")):
        raise ValueError(f"{TRUST_FLAG} takes modules or classes, such as my_method, got {path!r}")
    top = path.partition(".")[0]
    if top in sys.stdlib_module_names or top == "jsonargparse":
        raise ValueError(f"{TRUST_FLAG} {path}: {top} is no module of a method")


def refusal(message: str) -> str | None:
    """Return one line for an error of the config parser about a class that is not allowed.

    Args:
        message: The message of the parser.

    Returns:
        The line, which names key, class and flag; None for another error.
    """
    denied = re.search(r"Importing '([^']+)' is not allowed", message)
    if denied is None:
        return None
    key = re.search(r"""[Kk]ey ["']([\w.]+)["']""", message)
    named = re.findall(r"class_path '([^']+)'", message)
    path, where = denied[1], f'key "{key[1]}": ' if key else ""
    written = named[-1] if named else path
    alias = "" if written == path else f", which is {path}"
    module = path.rpartition(".")[0]
    allows = f"{TRUST_FLAG} {module} on the command line allows it"
    if path.partition(".")[0] in sys.stdlib_module_names:
        allows = f"{TRUST_FLAG} allows modules of your own, but not {module}"
    hint = suggested_class(path) if path.startswith("dmole.") else ""
    allows = hint or f"; {allows}"
    return f"{where}{written}{alias} is not among the classes that a config may name{allows}"


def check_remote_code(config: Any, words: Sequence[str]) -> None:
    """Refuse ``trust_remote_code`` unless the command line itself sets it.

    Args:
        config: The parsed settings of files and flags.
        words: The command line.

    Raises:
        ValueError: If a file sets it; names the key and the flag.
    """
    key = next(_trusting_keys(config), None)
    if key is not None and not sets_remote_code(words):
        raise ValueError(
            f"{_without_verb(key)} runs code of the base model and may not be set in a file: set "
            f"{REMOTE_CODE_FLAG} true on the command line, or remove it"
        )


def check_trackers(config: Any, words: Sequence[str]) -> None:
    """Refuse trackers that the command line itself does not name, since they may send data away.

    Args:
        config: The parsed settings of files and flags.
        words: The command line.

    Raises:
        ValueError: If a file names one; names key and flag.
    """
    named = {name for value in _values_of(words, REPORT_FLAG) for name in re.findall(r"\w+", value)}
    for verb in (config, *(vars(config).values() if isinstance(config, Namespace) else ())):
        names = verb.get("trainer.report_to") if isinstance(verb, Namespace) else None
        for name in names or ():
            if name != "tensorboard" and name not in named:
                raise ValueError(
                    f"trainer.report_to: {excerpt(name)} may send data away and may not be set in "
                    f"a file: set {REPORT_FLAG} on the command line, or remove it"
                )


def _values_of(words: Sequence[str], flag: str) -> Iterator[str]:
    """Yield the values of a flag on the command line."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == flag:
            yield value if equals else following


def _without_verb(key: str) -> str:
    """Return a key of the parser as a config writes it, without the verb before it."""
    return re.sub(r"^(fit|allocate)\.", "", key)


def sets_remote_code(words: Sequence[str]) -> bool:
    """Return whether a flag of the command line is the one for ``trust_remote_code``."""
    pattern = re.compile(r"--model\.backbone\.(init_args\.)?trust_remote_code(=|$)")
    return any(pattern.match(word) for word in words)


def _trusting_keys(settings: Any, path: str = "") -> Iterator[str]:
    """Yield every key ``trust_remote_code`` in nested settings whose value is not false or null."""
    if isinstance(settings, Namespace):
        settings = vars(settings)
    if isinstance(settings, dict):
        for name, value in settings.items():
            where = f"{path}.{name}".lstrip(".")
            if str(name).rpartition(".")[2] == "trust_remote_code" and value not in (False, None):
                yield where
            yield from _trusting_keys(value, where)
    elif isinstance(settings, (list, tuple)):
        for index, value in enumerate(settings):
            yield from _trusting_keys(value, f"{path}.{index}")
