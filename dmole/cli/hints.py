"""Short messages for errors in config and flags, with the name that was probably meant."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from dmole.messages import excerpt, one_line

HINTS = {
    "epochs": "each task has its own epochs, under data.tasks",
    "max_epochs": "each task has its own epochs, under data.tasks",
    "num_train_epochs": "each task has its own epochs, under data.tasks",
    "lr": "use model.optimizer.init_args.lr",
    "learning_rate": "use model.optimizer.init_args.lr",
    "weight_decay": "use model.optimizer.init_args.weight_decay",
    "logger": "use trainer.report_to, a list of names, or trainer.loggers, a list of classes",
    "max_steps": "a stage is trained as a whole; use the epochs of its tasks",
    "batch_size": "use data.batch_size",
    "gradient_accumulation_steps": "use trainer.accumulate_grad_batches",
    "bf16": "use trainer.precision bf16-mixed",
    "fp16": "use trainer.precision 16-mixed",
    "rank": "use model.allocator.init_args.rank",
    "r": "use model.allocator.init_args.rank",
    "lora_alpha": "use model.alpha",
    "lora_dropout": "use model.dropout",
    "seed": "use seed_everything",
    "output_dir": "use trainer.default_root_dir and trainer.name",
    "resume_from_checkpoint": "use ckpt_path",
    "resume": "use ckpt_path",
    "model_name_or_path": "use model.backbone.init_args.name_or_path",
}
"""Settings that users of other tools look for, and where they are here."""

_PARTS = (
    *("allocation", "routing", "regularizers", "streams", "callbacks", "models", "benchmarks"),
    *("metrics", "curriculum.rules"),
)
"""Packages whose classes configs name."""

_KEY = re.compile(r'Parser key "([\w.+-]+)":')
_CLASS = re.compile(r"class_path(?: |=)'([\w.]+)'")
_OPTION = re.compile(r"Option '([\w.]+)' is not accepted")
_GROUP = re.compile(r"(Group|Subcommand) '([\w.]+)' does not accept option '([\w.]+)'")
_FLAG = re.compile(r"(?:unrecognized arguments|ambiguous option): --([\w.]+)")
_UNION = re.compile(r"Subtypes: \[(.*)\] Errors: .* Given value: (.*)$")
_INNER_UNION = re.compile(
    r"Subtypes: \[([^:]*)\] Errors: (?:- Expected [^:]* )+Given value type: \S+ '\w+'> "
    r"Given value: (.*?) - Expected "
)
_TYPE = re.compile(r"Expected an? (<class '.*?'>|typing\.Literal\[.*?\])\. Got value: (.*)$")
_PATH = re.compile(r"Expected a dot import path string: (.*)$")
_PROBLEM = re.compile(r"Problem with given class_path '[\w.]+': (.*)$")
_NESTED = re.compile(r"^(?:Problem with given class_path '[\w.]+': |Parser key \"[\w.+-]+\": )+")


@dataclass(frozen=True)
class Explanation:
    """An error in config or flags.

    Args:
        text: The error in one line.
        key: Dotted key of the setting, if it is known.
        option: Name of an argument that the class under the key does not have.
    """

    text: str
    key: str | None = None
    option: str | None = None


def explain(message: str, settings: Iterable[str]) -> Explanation:
    """Return the short form of an error of the config parser.

    Args:
        message: The error of jsonargparse.
        settings: Dotted names of all settings, to suggest one of them.

    Example:
        >>> explain("unrecognized arguments: --data.batchsize 4", ["data.batch_size"]).text
        'there is no setting --data.batchsize (did you mean data.batch_size?)'
    """
    text = one_line(message)
    key = _KEY.search(text)
    if group := _GROUP.search(text):
        name = group[3] if group[1] == "Subcommand" else f"{group[2]}.{group[3]}"
        return _unknown(name, settings)
    if flag := _FLAG.search(text):
        return _unknown(flag[1], settings, prefix="--")
    option = _OPTION.search(text)
    if option is not None and key is None:
        return _unknown(option[1], settings)
    if key is None:
        return Explanation(_cause(text) or text)
    if option is not None:
        return _unknown_argument(text, option)
    inner = "".join(f"{name}: " for name in _KEY.findall(text)[1:])
    return Explanation(f"{key[1]}: {inner}{_reason(text[key.end() :].strip())}", key[1])


def _unknown(name: str, settings: Iterable[str], prefix: str = "") -> Explanation:
    """Return the explanation of a setting that does not exist."""
    last = name.rpartition(".")[2]
    hint = HINTS.get(last)
    if hint is None:
        names = sorted(settings)
        ends = {other.rpartition(".")[2]: other for other in names}
        close = get_close_matches(name, names, n=1, cutoff=0.8)
        close = close or [ends[e] for e in get_close_matches(last, ends, n=1, cutoff=0.8)]
        hint = f"did you mean {close[0]}?" if close else "see dmole fit --help"
    return Explanation(f"there is no setting {prefix}{name} ({hint})", name)


def _unknown_argument(text: str, found: re.Match[str]) -> Explanation:
    """Return the explanation of an argument that a class does not have.

    Classes may be nested: the argument is one of the last class that is named before it.
    """
    option, before = found[1], text[: found.start()]
    key, *inner = _KEY.findall(text)
    classes = _CLASS.findall(before)[-1:] or _CLASS.findall(text)[:1]
    path = classes[0] if classes else key
    names = _argument_names(path)
    close = get_close_matches(option, names, n=1) or [
        n for n in ("lr",) if n in names and option in HINTS
    ]
    hint = f" (did you mean {close[0]}?)" if close else ""
    if not hint and names:
        hint = f"; it has {', '.join(names)}"
    where = "".join(f"{name}: " for name in (key, *inner))
    return Explanation(f"{where}{path} has no argument {option!r}{hint}", key, option)


def _argument_names(path: str) -> list[str]:
    """Return the arguments of a class of dmole or torch; none for other packages."""
    module, _, name = path.rpartition(".")
    if module.partition(".")[0] not in ("dmole", "torch"):
        return []
    try:
        kind = getattr(importlib.import_module(module), name)
        names = list(inspect.signature(kind).parameters)
    except (ImportError, AttributeError, TypeError, ValueError):
        return []
    return [each for each in names if each not in ("args", "kwargs", "params")]


def _reason(text: str) -> str:
    """Return what is wrong with the value of a setting."""
    if text.count(" Subtypes: [") > 1 and " is not accepted" not in text:
        inner = text[text.rindex("Subtypes: [") :]  # a union in an argument of a union's class
        if union := _INNER_UNION.match(inner):
            return _fits_none(union[1], union[2])
    if cause := _cause(text):
        return _reason(_NESTED.sub("", cause))
    if union := _UNION.search(text):
        return _fits_none(union[1], union[2])
    if wrong := _TYPE.search(text):
        return f"expected {_readable(wrong[1])}, got {excerpt(wrong[2])}"
    if path := _PATH.search(text):
        return f"{excerpt(path[1])} is not the path of a class{suggested_class(path[1])}"
    if problem := _PROBLEM.search(text):
        return problem[1]
    return text.replace("- Expected a path but ", "").replace(
        " either not accessible or invalid", ""
    )


def _fits_none(subtypes: str, value: str) -> str:
    """Return the error of a value that has none of the types of a union."""
    kinds = [_readable(kind) for kind in re.findall(r"<class '.*?'>|\w[\w.]*\[.*?\]+", subtypes)]
    return f"expected {' or '.join(dict.fromkeys(kinds))}, got {excerpt(value)}"


def _cause(text: str) -> str | None:
    """Return the error of the one type of a union that fits the value but for its content.

    Example:
        >>> _cause("Errors: - rank is 0 - Expected a <class 'NoneType'> Given value type: x")
        'rank is 0'
    """
    found = re.search(r"Errors: (.*?) Given value type:", text)
    errors = re.split(r"(?:^| )- ", found[1]) if found else []
    return next((each for each in errors if each and not each.startswith("Expected ")), None)


def _readable(kind: str) -> str:
    """Return the name of a type as users write its values.

    Example:
        >>> _readable("<class 'NoneType'>"), _readable("list[a.b.Callback]")
        ('null', 'a list of Callback')
    """
    if found := re.fullmatch(r"<class '([\w.]+)'>", kind):
        name = found[1].rpartition(".")[2]
        return {"NoneType": "null", "int": "an integer", "float": "a number", "str": "text",
                "bool": "true or false", "list": "a list", "dict": "keys and values"}.get(
                    name, f"the class_path of a {name}")  # fmt: skip
    if found := re.fullmatch(r"typing\.Literal\[(.*)\]", kind):
        return f"one of {found[1]}"
    if found := re.fullmatch(r"list\[([\w.]+)\]", kind):
        return f"a list of {found[1].rpartition('.')[2]}"
    return kind


def suggested_class(text: str) -> str:
    """Return a hint at the class whose name resembles a text."""
    paths = {name: f"torch.optim.{name}" for name in ("AdamW", "Adam", "SGD")}
    for part in _PARTS:
        module = importlib.import_module(f"dmole.{part}")
        paths |= {name: f"dmole.{part}.{name}" for name in getattr(module, "__all__", ())}
    close = get_close_matches(text.rpartition(".")[2], paths, n=1)
    return f" (did you mean {paths[close[0]]}?)" if close else ""
