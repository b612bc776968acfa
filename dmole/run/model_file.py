"""``model.json``: what `predict` and `evaluate` need to know of a run, as plain values.

Base model, router and its settings, decoding, tasks with their metrics, order of the stages and
precision. It names the classes of dmole by short names of a closed table and holds no code. Runs
of earlier versions have no such file; the same values are read from their ``config.yaml``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmole._moved import current_path
from dmole._version import __version__
from dmole.run.parts import replace_parts
from dmole.run.plain import CONFIG, MODEL, REMOTE_CODE, PlainReader
from dmole.run.schema import NOT_OF_RUN, TRAINER, TRAINING_ONLY, RunSettings, checked_settings
from dmole.storage.files import write_json
from dmole.storage.reading import read_json
from dmole.storage.yaml_file import read_yaml

MODEL_FILE = "model.json"
CONFIG_FILE = "config.yaml"
FORMAT = 1
"""Version of the file."""


def write_model_file(run: Path, config: Mapping[str, Any]) -> None:
    """Write ``model.json`` into a run folder.

    Args:
        run: The folder.
        config: The config of the run, as in its ``config.yaml``.

    Raises:
        ValueError: If a setting that the file holds is no plain value.
    """
    write_settings(run, from_config(config, run / CONFIG_FILE, trusted=None))


def write_settings(run: Path, settings: RunSettings) -> None:
    """Write checked settings as the ``model.json`` of a run folder."""
    content = {
        "format": FORMAT,
        "dmole": __version__,
        "seed": settings.seed,
        "model": settings.model,
        "data": settings.data,
        "trainer": settings.trainer,
    }
    write_json(run / MODEL_FILE, replace_parts(content, _written))


def _written(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {MODEL.kind: kind, MODEL.settings: settings}


def read_run_settings(run: Path, trusted: Sequence[str] = ()) -> RunSettings:
    """Read the settings of a run folder.

    Args:
        run: The folder.
        trusted: Modules outside dmole whose classes the run may name.

    Raises:
        ValueError: If the folder is no run, a value is not valid, a class is neither of dmole nor
            trusted, or the base model is a path inside the run folder. The message names file
            and key.
    """
    file = run / MODEL_FILE
    if file.is_symlink() or file.exists():
        settings = _from_file(file, trusted)
    else:
        path = run / CONFIG_FILE
        if not (path.is_symlink() or path.exists()):
            raise ValueError(
                f"{run} is no run folder: it has neither {MODEL_FILE} nor {CONFIG_FILE}"
            )
        content = read_yaml(path)
        settings = from_config(content, path, trusted)
    for text in settings.base_strings():
        check_outside(text, run, settings.path)
    return settings


def check_outside(text: str, run: Path, file: Path) -> None:
    """Refuse a base model inside the run folder that names it.

    Raises:
        ValueError: If the text is a path to the folder or into it, also through links.
    """
    try:
        resolved = Path(text).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):  # links in a circle, an unknown home folder
        return
    if resolved.is_relative_to(run.resolve()):
        raise ValueError(
            f"{file}: model.backbone names {text!r}, which is inside the run folder: a run may "
            "not bring its own base model"
        )


def from_config(config: Any, path: Path, trusted: Sequence[str] | None) -> RunSettings:
    """Return the settings of a ``config.yaml``; what answers do not depend on is ignored.

    Args:
        config: Content of the file.
        path: The file, for messages.
        trusted: Modules outside dmole whose classes may be named; None allows all.

    Raises:
        ValueError: If it is no config of a run or a value is not valid.
    """
    for key in ("trainer", "model", "data"):
        if not isinstance(config, Mapping) or not isinstance(config.get(key), Mapping):
            raise ValueError(f"{path} is not the config of a run: it has no {key}")
    if not isinstance(config["data"].get("tasks"), list):
        raise ValueError(f"{path} is not the config of a run: it has no data.tasks")
    model = {k: v for k, v in config["model"].items() if k not in TRAINING_ONLY}
    backbone = model.get("backbone")
    remote_code = False
    if isinstance(backbone, Mapping) and isinstance(backbone.get("init_args"), Mapping):
        arguments = dict(backbone["init_args"])
        remote_code = arguments.pop(REMOTE_CODE, None) not in (None, False)
        model["backbone"] = {**backbone, "init_args": arguments}
    trainer = {k: v for k, v in config["trainer"].items() if k in TRAINER}
    trainer |= _avg_scope(config["trainer"].get("callbacks"))
    data = {k: v for k, v in config["data"].items() if k not in NOT_OF_RUN}
    seed = config.get("seed_everything")
    content = {
        "seed": 0 if seed is None or isinstance(seed, bool) else seed,
        "model": model,
        "data": data,
        "trainer": trainer,
    }
    return checked_settings(content, PlainReader(path, CONFIG, trusted), remote_code)


def _avg_scope(callbacks: Any) -> dict[str, Any]:
    """Return the scope of AVG that a config sets on the callback of the matrix."""
    for callback in callbacks if isinstance(callbacks, list) else ():
        if not isinstance(callback, Mapping) or not isinstance(callback.get("class_path"), str):
            continue
        arguments = callback.get("init_args")
        name = current_path(callback["class_path"])
        is_matrix = name.startswith("dmole.callbacks.") and name.endswith(".EvaluationMatrix")
        if is_matrix and isinstance(arguments, Mapping) and "avg_scope" in arguments:
            return {"avg_scope": arguments["avg_scope"]}
    return {}


def _from_file(path: Path, trusted: Sequence[str]) -> RunSettings:
    content = read_json(path)
    reader = PlainReader(path, MODEL, trusted)
    content = reader.mapping(content, "the file")
    version = content.pop("format", None)
    if type(version) is not int or version != FORMAT:
        raise ValueError(f"{path}: format must be {FORMAT}, got {str(version)[:80]!r}")
    made_by = content.pop("dmole", "")
    if not isinstance(made_by, str):
        raise reader.error("dmole", "must be a version")
    for key in ("seed", "model", "data", "trainer"):
        if key not in content:
            raise ValueError(f"{path}: {key} is missing")
    if unknown := sorted(content.keys() - {"seed", "model", "data", "trainer"}):
        raise reader.error(unknown[0], "is unknown")
    return checked_settings(content, reader, remote_code=False)
