"""What a config may name: the classes of dmole and harmless ones, whatever the form."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace
from strangers import EVIL, POPEN, Change, old_config, plant, refused

from dmole.cli.lightning import ConfigError, ContinualCLI
from dmole.cli.trust import check_remote_code, classes_allowed, refusal, take_trusted
from dmole.run.parts import part_paths
from dmole.storage.shipped import CONFIG_ROOTS

LAMBDA = {
    "class_path": "lightning.pytorch.callbacks.LambdaCallback",
    "init_args": {"on_fit_start": "os.system"},
}
DDP = {
    "class_path": "lightning.pytorch.strategies.DDPStrategy",
    "init_args": {"ddp_comm_hook": "os.system"},
}
CSV = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "PWNED"}}
MONITOR = {
    "class_path": "lightning.pytorch.callbacks.LearningRateMonitor",
    "init_args": {"logging_interval": "step"},
}
NESTED: dict[str, Any] = {
    "class_path": "dmole.routing.CommonExpertRouter",
    "init_args": {"router": EVIL, "mixing": {"class_path": "dmole.routing.CommonMixing"}},
}
ALIAS = {"class_path": "dmole.experts.export.json.JSONDecoder"}
HOSTILE: list[tuple[str, Change, str]] = [
    ("plugins", lambda c: c["trainer"].update(plugins=[POPEN]), "trainer.plugins"),
    ("callbacks", lambda c: c["trainer"].update(callbacks=[EVIL]), "evil.Thing"),
    ("lambda", lambda c: c["trainer"].update(callbacks=[LAMBDA]), "LambdaCallback"),
    ("loggers", lambda c: c["trainer"].update(loggers=[EVIL]), "evil.Thing"),
    ("csv", lambda c: c["trainer"].update(loggers=[CSV]), "lightning.pytorch.loggers"),
    ("profiler", lambda c: c["trainer"].update(profiler=EVIL), "evil.Thing"),
    ("strategy", lambda c: c["trainer"].update(strategy=EVIL), "evil.Thing"),
    ("hook", lambda c: c["trainer"].update(strategy=DDP), "os.system"),
    ("backbone", lambda c: c["model"].update(backbone=EVIL), "evil.Thing"),
    ("router", lambda c: c["model"].update(router=POPEN), "subprocess.Popen"),
    ("alias", lambda c: c["model"].update(router=ALIAS), "JSONDecoder"),
    ("nested", lambda c: c["model"].update(router=NESTED), "evil.Thing"),
    ("function", lambda c: c["model"].update(optimizer="os.system"), "os.system"),
    ("own function", lambda c: c["model"].update(optimizer="dmole.cli.main.main"), "main"),
    ("optimizer", lambda c: c["model"].update(optimizer=EVIL), "evil.Thing"),
    ("regularizer", lambda c: c["model"].update(regularizers=[EVIL]), "evil.Thing"),
    ("metric", lambda c: c["data"]["tasks"][0].update(metric=EVIL), "evil.Thing"),
]


@pytest.mark.parametrize(
    ("change", "culprit"), [pytest.param(*row, id=name) for name, *row in HOSTILE]
)
def test_a_config_that_names_foreign_code_is_refused_in_one_line_and_runs_nothing(
    change: Change,
    culprit: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mark = plant(tmp_path, monkeypatch)
    config = old_config()
    change(config)
    Path("config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    line = refused(["fit", "--config", "config.yaml"], capsys)
    assert culprit in line
    assert "--trust_classes" in line
    assert "config.yaml" in line
    assert not mark.exists()
    assert not Path("runs").exists()


def test_a_config_that_names_a_tracker_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = plant(tmp_path, monkeypatch)
    config = old_config()
    config["trainer"]["report_to"] = ["tensorboard", "wandb"]
    Path("config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    line = refused(["fit", "--config", "config.yaml"], capsys)
    assert "trainer.report_to: 'wandb' may send data away" in line
    assert not mark.exists()
    assert not Path("runs").exists()
    config["trainer"]["report_to"] = ["tensorboard"]
    Path("config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert ContinualCLI(["--config", "config.yaml"], run=False).trainer.loggers


def test_yaml_tags_of_a_config_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = plant(tmp_path, monkeypatch)
    Path("config.yaml").write_text("a: !!python/object/apply:os.mkdir [PWNED]", encoding="utf-8")
    assert "config.yaml" in refused(["fit", "--config", "config.yaml"], capsys)
    Path("config.yaml").write_text("model: {router: inner.yaml}", encoding="utf-8")
    Path("inner.yaml").write_text("!!python/object/apply:os.mkdir [PWNED]", encoding="utf-8")
    words = ["fit", "--config", "quickstart.yaml", "--config", "config.yaml"]
    refused(words, capsys)
    assert not mark.exists()


def test_values_of_any_type_stay_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = plant(tmp_path, monkeypatch)
    config = old_config()
    config["model"]["backbone"]["init_args"]["image_settings"] = {"max_pixels": EVIL}
    Path("config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(ValueError, match="image setting 'max_pixels' is unknown"):
        ContinualCLI(["--config", "config.yaml"], run=False)
    assert not mark.exists()


def test_every_class_of_the_shipped_configs_may_be_named() -> None:
    def paths(node: Any) -> list[str]:
        if isinstance(node, list):
            return [path for each in node for path in paths(each)]
        if not isinstance(node, dict):
            return []
        named = [node["class_path"]] if "class_path" in node else []
        return named + [path for each in node.values() for path in paths(each)]

    files = [path for root in CONFIG_ROOTS if root.is_dir() for path in root.rglob("*.yaml")]
    named = {p for f in files for p in paths(yaml.safe_load(f.read_text(encoding="utf-8")))}
    assert len(named) > 20
    assert {path for path in named if path.startswith("dmole.")} <= set(part_paths())


def test_a_config_without_an_optimizer_gets_the_default_one(tmp_path: Path) -> None:
    config = old_config()
    del config["model"]["optimizer"]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    cli = ContinualCLI(["--config", str(path)], run=False)
    optimizer = cli.model.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.AdamW)
    written = ContinualCLI(["--config", str(path)], run=False)
    text = written.parser.dump(written.config, skip_none=False)  # as the run folder keeps it
    path.write_text(text, encoding="utf-8")
    again = ContinualCLI(["--config", str(path)], run=False).model
    assert again.make_optimizer is cli.model.make_optimizer


def test_harmless_classes_of_torch_and_lightning_need_no_trust(tmp_path: Path) -> None:
    config = old_config()
    config["trainer"]["callbacks"] = [MONITOR]
    config["trainer"]["plugins"] = [
        {"class_path": "lightning.pytorch.plugins.environments.LightningEnvironment"}
    ]
    config["model"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    cli = ContinualCLI(["--config", str(path)], run=False)
    optimizer = cli.model.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.SGD)


def test_a_trusted_module_ends_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from dmole.routing import SharedRouter\nclass Own(SharedRouter):\n    pass\n"
    (tmp_path / "own_router_of_a_user.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = old_config()
    config["model"]["router"] = {"class_path": "own_router_of_a_user.Own"}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    words = ["--config", str(path)]
    cli = ContinualCLI(words, run=False, trusted=("own_router_of_a_user",))
    assert type(cli.model.router).__name__ == "Own"
    with pytest.raises(ConfigError, match="--trust_classes own_router_of_a_user"):
        ContinualCLI(words, run=False)


def test_a_trusted_module_does_not_lend_its_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lender_of_a_user.py").write_text("import subprocess\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = old_config()
    config["model"]["optimizer"] = "lender_of_a_user.subprocess.Popen"
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(ConfigError, match="subprocess"):
        ContinualCLI(["--config", str(path)], run=False, trusted=("lender_of_a_user",))


def test_the_flag_is_taken_from_the_command_line_and_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("dmole"), "propagate", True)
    words = ["fit", "--trust_classes", "a.b,c", "--x", "1", "--trust_classes=d"]
    assert take_trusted(words) == (["fit", "--x", "1"], ("a.b", "c", "d"))
    assert set(caplog.messages) == {"--trust_classes: configs may name classes of a.b, c, d"}
    assert take_trusted(["fit"]) == (["fit"], ())


@pytest.mark.parametrize("value", ["", "a b", "a-b", "../x", "os", "subprocess", "jsonargparse.x"])
def test_a_value_of_the_flag_that_is_no_module_of_a_user_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="--trust_classes"):
        take_trusted(["fit", "--trust_classes", value])


def test_the_flag_in_a_config_is_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = plant(tmp_path, monkeypatch)
    config = old_config() | {"trust_classes": "evil"}
    config["model"]["router"] = EVIL
    Path("config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    refused(["fit", "--config", "config.yaml"], capsys)
    assert not mark.exists()


def test_a_refusal_names_key_class_origin_and_flag() -> None:
    message = (
        "Parser key \"model.router\":\n  Problem with given class_path 'a.b.C':\n    "
        "Importing 'x.y.C' is not allowed, denied by the '*' entry of the import path denylist."
    )
    line = refusal(message)
    assert line is not None
    assert 'key "model.router": a.b.C, which is x.y.C is not among' in line
    assert "--trust_classes x.y on the command line" in line
    assert refusal("Parser key: something else") is None


def test_a_class_of_dmole_that_is_misspelled_is_not_to_be_trusted_but_corrected() -> None:
    name = "dmole.allocation.KepInitializer"
    line = refusal(f"Parser key \"model.allocator\":\n  Importing '{name}' is not allowed")
    assert line is not None
    assert line.endswith("may name (did you mean dmole.allocation.KeepInitializer?)")


@pytest.mark.parametrize("value", [True, "yes", "true", 1, [0], {"a": False}])
@pytest.mark.parametrize("where", ["init_args", "dict_kwargs", "image_settings"])
def test_remote_code_is_trusted_by_the_flag_alone_whatever_its_form(value: Any, where: str) -> None:
    config = Namespace(model=Namespace(backbone=Namespace({where: {"trust_remote_code": value}})))
    with pytest.raises(ValueError, match=rf"model\.backbone\.{where}\.trust_remote_code runs code"):
        check_remote_code(config, ["fit", "--config", "trust_remote_code.yaml"])
    check_remote_code(config, ["--model.backbone.init_args.trust_remote_code", "true"])


def test_remote_code_that_is_off_needs_no_flag() -> None:
    off = [{"trust_remote_code": False}, {"x.trust_remote_code": None}]
    check_remote_code(Namespace(model=off), [])


@pytest.mark.parametrize("key", ["trust_remote_code", "init_args.trust_remote_code"])
def test_a_config_that_trusts_remote_code_is_refused(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"model": {f"backbone.{key}": True}}
    Path("own.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    line = refused(["fit", "--config", "quickstart.yaml", "--config", "own.yaml"], capsys)
    assert "dmole: model.backbone" in line
    assert "trust_remote_code true on the command line" in line


def test_nothing_but_the_list_is_allowed_after_the_command() -> None:
    from jsonargparse import ArgumentParser

    with classes_allowed(("fractions",)):
        pass
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--number", type=type)
    with pytest.raises(Exception, match="not allowed"):
        parser.parse_args(["--number", "fractions.Fraction"])
