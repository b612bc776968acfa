"""Checks plain values of a file against the type hints of the constructor they are meant for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dmole.run.parts import (
    PARTS,
    Part,
    constructor_hints,
    import_class,
    is_under,
    kind_of,
    kinds,
    required_arguments,
)

REMOTE_CODE = "trust_remote_code"
"""Argument of a base model that runs the code in its folder; only the command line sets it."""

_LONGEST = 10_000
_DEEPEST = 20
_PLAIN = (str, bool, int, float, NoneType)
_NAMES = {str: "a text", bool: "true or false", int: "an integer", float: "a number"}


@dataclass(frozen=True)
class Form:
    """How a file writes a part of a method.

    Args:
        kind: Key of its class.
        settings: Key of its arguments.
        paths: Whether classes of dmole are written as dotted paths instead of short names.
    """

    kind: str
    settings: str
    paths: bool


CONFIG = Form("class_path", "init_args", paths=True)
MODEL = Form("kind", "settings", paths=False)


@dataclass(frozen=True)
class PlainReader:
    """Reads values of a file; in the result every part of a method is a `Part`.

    Args:
        path: The file, for messages.
        form: How it writes parts.
        trusted: Modules whose classes may be named besides those of dmole; None allows all.
    """

    path: Path
    form: Form
    trusted: Sequence[str] | None = ()

    def error(self, key: str, reason: str) -> ValueError:
        """Return the error about a key."""
        return ValueError(f"{self.path}: {key} {reason}")

    def mapping(self, value: Any, key: str) -> dict[str, Any]:
        """Return a value that must be an object with texts as keys, none of which trusts code.

        Raises:
            ValueError: If it has another form, or sets `REMOTE_CODE`; names file and key.
        """
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise self.error(key, f"must hold keys and values, got {_shown(value)}")
        for name in value:
            if name.rpartition(".")[2] == REMOTE_CODE and value[name] not in (None, False):
                raise self.error(f"{key}.{name}", "is never read from a file")
        return dict(value)

    def read(self, hint: Any, value: Any, key: str, depth: int = 0) -> Any:
        """Return a value of the type of a hint, in plain form.

        Args:
            hint: A plain type, a literal, a container, a dataclass, a base class of `PARTS` or a
                union of these.
            value: The value of the file.
            key: Its dotted key, for messages.
            depth: Nesting so far.

        Raises:
            ValueError: If the value has another type, or names a class that is not allowed.
        """
        if depth > _DEEPEST:
            raise self.error(key, f"is nested deeper than {_DEEPEST}")
        origin, choices = get_origin(hint), get_args(hint)
        if origin in (Union, UnionType):
            return self._read_union(choices, value, key, depth)
        if origin is Literal:
            if not any(value == choice and type(value) is type(choice) for choice in choices):
                expected = ", ".join(str(choice) for choice in choices)
                raise self.error(key, f"must be one of {expected}, got {_shown(value)}")
            return value
        if hint is Any:
            return self._read_plain(value, key, depth)
        if hint in _PLAIN:
            return self._read_scalar(hint, value, key)
        if origin in (dict, list, Sequence):
            return self._read_container(origin, choices[-1], value, key, depth)
        if is_dataclass(hint):
            named = get_type_hints(hint)
            known = {field.name: named[field.name] for field in fields(hint)}
            content = self.mapping(value, key)
            self._check_complete(hint, content, key)
            return self.arguments(known, content, key, depth)
        return self._read_part(hint.__name__, value, key, depth)

    def arguments(
        self, hints: Mapping[str, Any], content: Mapping[str, Any], key: str, depth: int = 0
    ) -> dict[str, Any]:
        """Return checked arguments by name; refuse a name that has no hint.

        Raises:
            ValueError: If a name or a value is not valid; names file and key.
        """
        for name in content:
            if name not in hints:
                raise self.error(f"{key}.{name}", f"is unknown; known are {', '.join(hints)}")
        return {
            name: self.read(hints[name], value, f"{key}.{name}", depth + 1)
            for name, value in content.items()
        }

    def _read_container(self, origin: Any, inner: Any, value: Any, key: str, depth: int) -> Any:
        if origin is dict:
            content = self.mapping(value, key)
            return {n: self.read(inner, v, f"{key}.{n}", depth + 1) for n, v in content.items()}
        if not isinstance(value, list):
            raise self.error(key, f"must be a list, got {_shown(value)}")
        return [self.read(inner, v, f"{key}.{i}", depth + 1) for i, v in enumerate(value)]

    def _read_union(self, choices: Sequence[Any], value: Any, key: str, depth: int) -> Any:
        if value is None and NoneType in choices:
            return None
        options = [choice for choice in choices if choice is not NoneType]
        is_object = isinstance(value, Mapping)
        fitting = [each for each in options if _takes_object(each) == is_object]
        for choice in fitting[:-1]:
            try:
                return self.read(choice, value, key, depth)
            except ValueError:
                continue
        return self.read((fitting or options)[-1], value, key, depth)

    def _read_scalar(self, hint: Any, value: Any, key: str) -> Any:
        if hint is float and type(value) is int:
            value = float(value)
        if type(value) is not hint:
            raise self.error(key, f"must be {_NAMES.get(hint)}, got {_shown(value)}")
        if hint is float and not math.isfinite(value):
            raise self.error(key, f"must be finite, got {value}")
        if hint is int and abs(value) >= 2**63:
            raise self.error(key, "must be a number of at most 64 bits")
        if hint is str and (len(value) > _LONGEST or "\0" in value):
            raise self.error(key, f"must be at most {_LONGEST} characters, none of them NUL")
        return value

    def _read_plain(self, value: Any, key: str, depth: int) -> Any:
        """Return a value of any plain type; nested parts are read as such."""
        if depth > _DEEPEST:
            raise self.error(key, f"is nested deeper than {_DEEPEST}")
        if isinstance(value, list):
            return [self._read_plain(v, f"{key}.{i}", depth + 1) for i, v in enumerate(value)]
        if isinstance(value, Mapping):
            content = self.mapping(value, key)
            if self.form.kind in content and set(content) <= {self.form.kind, self.form.settings}:
                return self._read_part(None, content, key, depth)
            return {n: self._read_plain(v, f"{key}.{n}", depth + 1) for n, v in content.items()}
        if type(value) not in _PLAIN:
            raise self.error(key, f"must be a plain value, got a {type(value).__name__}")
        return self._read_scalar(type(value), value, key)

    def _read_part(self, base: str | None, value: Any, key: str, depth: int) -> Part:
        """Return a part.

        Args:
            base: Name of its base class; None for any.
            value: The value of the file.
            key: Its dotted key.
            depth: Nesting so far.
        """
        content = self.mapping(value, key)
        for name in content:
            if name not in (self.form.kind, self.form.settings) and content[name]:
                raise self.error(f"{key}.{name}", "is unknown")
        named = content.get(self.form.kind)
        where = f"{key}.{self.form.kind}"
        if not isinstance(named, str) or len(named) > 500:
            raise self.error(where, f"must be the name of a class, got {_shown(named)}")
        arguments = self.mapping(
            content.get(self.form.settings) or {}, f"{key}.{self.form.settings}"
        )
        inner = f"{key}.{self.form.settings}"
        for role in [base] if base else PARTS:
            kind = kind_of(named, role) if self.form.paths else named
            if kind in kinds(role):
                made = import_class(kinds(role)[kind])
                hints = constructor_hints(made)
                self._check_complete(made, arguments, inner)
                return Part(str(kind), self.arguments(hints, arguments, inner, depth))
        self._check_trusted(named, where, base)
        settings = {n: self._read_plain(v, f"{inner}.{n}", depth + 1) for n, v in arguments.items()}
        return Part(named, settings)

    def _check_complete(self, kind: Any, content: Mapping[str, Any], key: str) -> None:
        for name in required_arguments(kind):
            if name not in content:
                raise self.error(f"{key}.{name}", "is missing")

    def _check_trusted(self, named: str, key: str, base: str | None) -> None:
        module = named.rpartition(".")[0]
        if not module or named.partition(".")[0] == "dmole":
            known = ", ".join(kinds(base)) if base else "a part of dmole"
            raise self.error(key, f"is {_shown(named)}, expected {known}")
        if self.trusted is not None and not is_under(named, self.trusted):
            raise self.error(
                key,
                f"is {_shown(named)}, a class outside dmole: --trust_classes {module} on the "
                "command line allows it",
            )


def _takes_object(hint: Any) -> bool:
    """Return whether a hint takes an object of the file."""
    if get_origin(hint) is not None:
        return get_origin(hint) is dict
    return hint not in (*_PLAIN, Any)


def _shown(value: Any) -> str:
    return repr(value)[:80]
