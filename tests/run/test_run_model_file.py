"""What is read of a run folder: plain values of known keys, types and ranges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from strangers import EVIL, OLD_CONFIG, POPEN, edit_model, old_config, plant

from dmole._version import __version__
from dmole.callbacks import EvaluationMatrix
from dmole.datamodule import ContinualDataModule
from dmole.module import ContinualModule
from dmole.run.loading import as_config
from dmole.run.model_file import from_config, read_run_settings, write_model_file
from dmole.run.parts import Part, constructor_hints
from dmole.run.schema import DATA, MODEL, NOT_OF_RUN, TRAINING_ONLY


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with the settings of a finished run."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_model_file(folder, old_config())
    return folder


def test_the_file_names_no_class_by_its_path_and_is_read_as_it_was_written(run: Path) -> None:
    text = (run / "model.json").read_text(encoding="utf-8")
    assert "class_path" not in text
    assert "dmole." not in text
    content = json.loads(text)
    assert (content["format"], content["dmole"]) == (1, __version__)
    settings = read_run_settings(run)
    assert settings.seed == 2
    assert settings.model["router"].kind == "AutoencoderRouter"
    assert settings.model["backbone"].settings["name_or_path"] == "tiny"
    assert settings.trainer["stream"] == Part("SequentialStream", {"shared_expert": None})
    assert [task["metric"] for task in settings.data["tasks"]] == ["exact_match"] * 2 + ["iou"]


def test_a_run_of_an_earlier_version_has_the_same_settings(run: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.yaml").write_text(OLD_CONFIG.read_text(encoding="utf-8"), encoding="utf-8")
    new, earlier = read_run_settings(run), read_run_settings(old)
    assert (new.model, new.data, new.trainer) == (earlier.model, earlier.data, earlier.trainer)
    assert earlier.path == old / "config.yaml"


def test_what_answers_do_not_depend_on_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = plant(tmp_path, monkeypatch)
    config = old_config()
    config["trainer"] |= {"plugins": [POPEN], "loggers": [EVIL], "strategy": EVIL, "devices": 64}
    config["trainer"] |= {"callbacks": [EVIL], "profiler": EVIL, "default_root_dir": "/"}
    config["model"] |= {"optimizer": POPEN, "allocator": EVIL, "regularizers": [EVIL]}
    plain = as_config(from_config(config, Path("c.yaml"), ()))
    assert plain == as_config(from_config(old_config(), Path("c.yaml"), ()))
    assert plain["trainer"]["devices"] == 1
    assert "evil" not in json.dumps(plain)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("format", 2, "format must be 1, got '2'"),
        ("format", True, "format must be 1"),
        ("dmole", 3, "dmole must be a version"),
        ("plugins", [POPEN], "plugins is unknown"),
        ("seed", -1, "seed must be from 0 to"),
        ("seed", "0", "seed must be an integer"),
        ("model", [], "model must hold keys and values"),
        ("model.optimizer", POPEN, "model.optimizer is unknown"),
        ("model.beams", 0, "model.beams must be from 1 to 256, got 0"),
        ("model.beams", 1.5, "model.beams must be an integer"),
        ("model.beams", True, "model.beams must be an integer"),
        ("model.backbone", "tiny", "model.backbone must hold keys and values"),
        ("model.backbone", EVIL, "model.backbone.class_path is unknown"),
        ("model.backbone.kind", "Popen", "model.backbone.kind is 'Popen', expected Pretrained"),
        ("model.backbone.kind", "SharedRouter", "model.backbone.kind is 'SharedRouter', expected"),
        ("model.backbone.kind", "evil.Thing", "--trust_classes evil on the command line"),
        ("model.backbone.kind", "dmole.cli.main", "is 'dmole.cli.main', expected"),
        ("model.backbone.kind", None, "must be the name of a class, got None"),
        ("model.backbone.settings.dtype", "load", "dtype must be one of float32, bfloat16"),
        ("model.backbone.settings.attn_implementation", "evil/kernel", "must be one of eager"),
        ("model.backbone.settings.trust_remote_code", True, "is never read from a file"),
        ("model.backbone.settings.trust_remote_code", "yes", "is never read from a file"),
        ("model.backbone.settings.image_settings", {"trust_remote_code": 1}, "is never read"),
        ("model.backbone.settings.name_or_path", 3, "name_or_path must be a text, got 3"),
        ("model.backbone.settings.name_or_path", "a\0b", "none of them NUL"),
        ("model.backbone.settings.patterns", {"vision": 3}, "patterns.vision must be a text"),
        ("model.backbone.settings.patterns", {"other": "x"}, "patterns.other is unknown"),
        ("model.router.settings.quantile", "0.5", "quantile must be a number, got '0.5'"),
        ("model.router.settings.patience", 2**70, "64 bits"),
        ("model.router.settings.vote", "all", "vote must be one of sample, batch, got 'all'"),
        ("model.router.settings.rank", 3, "model.router.settings.rank is unknown; known are"),
        ("model.router", {"kind": "TokenRouter"}, "model.router.settings.gate is missing"),
        ("data.tasks", {}, "data.tasks must be a list"),
        ("data.tasks.0", {"train": "x"}, "data.tasks.0.name is missing"),
        ("data.tasks.0.nam", "x", "data.tasks.0.nam is unknown"),
        ("data.tasks.0.metric", {"kind": "evil.Thing"}, "--trust_classes evil"),
        ("data.tasks.0.metric", 3, "data.tasks.0.metric must be a text, got 3"),
        ("data.tasks.0.columns", {"a": {"kind": "evil.Thing"}}, "columns.a must be a text"),
        ("data.num_workers", 10**6, "data.num_workers must be from 0 to 256"),
        ("trainer.precision", "64-true", "trainer.precision must be one of"),
        ("trainer.accelerator", EVIL, "trainer.accelerator must be one of"),
        ("trainer.stream", {"kind": "AutoencoderRouter"}, "expected AnswerStyleStream"),
        ("trainer.plugins", [], "trainer.plugins is unknown"),
    ],
)
def test_an_altered_value_is_refused_by_file_and_key(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    value: Any,
    reason: str,
) -> None:
    mark = plant(tmp_path, monkeypatch)
    edit_model(run, key, value)
    with pytest.raises(ValueError, match=r"^[^\n]*model\.json: ") as error:
        read_run_settings(run)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert not mark.exists()


@pytest.mark.parametrize("key", ["seed", "model", "data", "trainer"])
def test_a_missing_section_is_named(run: Path, key: str) -> None:
    content = json.loads((run / "model.json").read_text(encoding="utf-8"))
    del content[key]
    (run / "model.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"model\.json: {key} is missing"):
        read_run_settings(run)


def test_deep_settings_of_a_foreign_class_are_refused(run: Path) -> None:
    value: Any = 1
    for _ in range(30):
        value = {"a": [value]}
    edit_model(run, "model.backbone", {"kind": "own.Base", "settings": {"x": value}})
    with pytest.raises(ValueError, match="nested deeper"):
        read_run_settings(run, trusted=("own",))


@pytest.mark.parametrize("name", ["run/base", "./run", "{run}/base", "elsewhere/../run/b", "link"])
def test_a_base_model_inside_the_run_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (run / "base").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(run / "base")
    edit_model(run, "model.backbone.settings.name_or_path", name.format(run=run))
    with pytest.raises(ValueError, match="which is inside the run folder"):
        read_run_settings(run)
    with pytest.raises(ValueError, match="which is inside the run folder"):
        read_run_settings(tmp_path / "elsewhere" / ".." / "run")


def test_a_base_model_beside_the_run_is_not_refused(run: Path, tmp_path: Path) -> None:
    edit_model(run, "model.backbone.settings.name_or_path", str(tmp_path / "run_base"))
    assert read_run_settings(run).model["backbone"].settings["name_or_path"].endswith("run_base")


def test_remote_code_of_an_old_config_is_reported_and_never_kept() -> None:
    for value in (True, "yes", 1, "false"):
        config = old_config()
        config["model"]["backbone"]["init_args"]["trust_remote_code"] = value
        settings = from_config(config, Path("c.yaml"), ())
        assert settings.remote_code
        assert "trust" not in json.dumps(as_config(settings))
    assert not from_config(old_config(), Path("c.yaml"), ()).remote_code


@pytest.mark.parametrize("form", ["list", "no_trainer", "no_tasks", "tag"])
def test_a_config_of_something_else_is_refused(tmp_path: Path, form: str) -> None:
    texts = {
        "list": "[1]",
        "no_trainer": "a: 1",
        "no_tasks": yaml.safe_dump(old_config() | {"data": {}}),
        "tag": "a: !!python/object/apply:os.mkdir [PWNED]",
    }
    (tmp_path / "config.yaml").write_text(texts[form], encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.yaml"):
        read_run_settings(tmp_path)
    with pytest.raises(ValueError, match="is no run folder"):
        read_run_settings(tmp_path / "nowhere")


def test_the_scope_of_the_average_is_kept() -> None:
    config = old_config()
    matrix = {"class_path": "dmole.callbacks.EvaluationMatrix", "init_args": {"avg_scope": "seen"}}
    config["trainer"]["callbacks"].append(matrix)
    settings = from_config(config, Path("c.yaml"), ())
    assert settings.trainer["avg_scope"] == "seen"
    assert as_config(settings)["trainer"]["callbacks"] == [matrix]
    assert EvaluationMatrix().avg_scope == "all"


def test_every_other_argument_of_the_module_is_recorded() -> None:
    arguments = set(constructor_hints(ContinualModule))
    assert set(TRAINING_ONLY) <= arguments
    settings = from_config(old_config(), Path("c.yaml"), ())
    assert set(settings.model) == {"backbone", "router", "beams"}


def test_the_types_of_a_run_are_those_of_the_constructors() -> None:
    module = constructor_hints(ContinualModule)
    assert {n: hint for n, hint in module.items() if n not in TRAINING_ONLY} == MODEL
    data = constructor_hints(ContinualDataModule)
    assert set(NOT_OF_RUN) <= set(data)
    assert {n: hint for n, hint in data.items() if n not in NOT_OF_RUN} == DATA
