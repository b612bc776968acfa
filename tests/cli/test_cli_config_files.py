from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from dmole.cli.config_files import (
    find_config,
    name_config,
    read_settings,
    replaced_sizes,
    resolve_configs,
    shipped_configs,
)
from dmole.cli.hints import Explanation
from dmole.run.loading import as_config
from dmole.run.model_file import from_config

SHIPPED = Path(__file__).resolve().parents[2] / "configs"
WHOLE = sorted(path.relative_to(SHIPPED) for path in SHIPPED.glob("*.yaml"))
OVERLAYS = [  # add to a benchmark
    Path("retention.yaml"),
    Path("benchmarks/alike_reversed.yaml"),
    Path("benchmarks/long_reversed.yaml"),
]
BENCHMARKS = sorted(path.relative_to(SHIPPED) for path in SHIPPED.glob("benchmarks/*.yaml"))
METHODS = sorted(path.relative_to(SHIPPED) for path in SHIPPED.glob("methods/*.yaml"))
STREAMS = sorted(path.relative_to(SHIPPED) for path in SHIPPED.glob("streams/*.yaml"))
MODELS = sorted(path.relative_to(SHIPPED) for path in SHIPPED.glob("models/*.yaml"))
HARDWARE = sorted(path.relative_to(SHIPPED) for path in SHIPPED.glob("hardware/*.yaml"))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["quickstart.yaml", "configs/quickstart.yaml"])
def test_a_shipped_config_is_found_from_any_folder(elsewhere: Path, name: str) -> None:
    assert find_config(name) == SHIPPED / "quickstart.yaml"


def test_a_file_in_the_working_directory_wins(elsewhere: Path) -> None:
    (elsewhere / "quickstart.yaml").write_text("seed_everything: 7\n")
    assert find_config("quickstart.yaml").resolve() == elsewhere / "quickstart.yaml"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("quikstart.yaml", " (did you mean quickstart.yaml?)"),
        ("configs/methods/se_ft.yaml", " (did you mean methods/seq_ft.yaml?)"),
        ("three.yaml", ""),  # near to real.yaml only by its suffix
    ],
)
def test_an_unknown_config_is_one_short_line_with_the_nearest_name(
    elsewhere: Path, name: str, hint: str
) -> None:
    expected = f"no config {name}: no such file, and none is shipped under this name{hint}; "
    with pytest.raises(ValueError, match=re.escape(f"{expected}`dmole configs` lists those")):
        find_config(name)


def test_missing_parts_are_answered_with_a_config_that_sets_them() -> None:
    message = name_config(
        Explanation("the following arguments are required: fit.model.router"), [], []
    )
    assert message.startswith("the following arguments are required: model.router; put a config")


def test_a_name_cannot_leave_the_shipped_folder(elsewhere: Path) -> None:
    with pytest.raises(ValueError, match="no config"):
        find_config("methods/../../pyproject.toml")


def test_every_config_of_the_checkout_is_listed() -> None:
    assert shipped_configs() == sorted(
        str(path) for path in [*WHOLE, *BENCHMARKS, *METHODS, *STREAMS, *MODELS, *HARDWARE]
    )


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"], ["-c", "{}"]])
def test_the_names_of_configs_are_replaced_in_every_form(elsewhere: Path, form: list[str]) -> None:
    words = [part.format("methods/dmole.yaml") for part in form]
    resolved, found = resolve_configs(["fit", *words, "--seed_everything", "3"])
    path = SHIPPED / "methods" / "dmole.yaml"
    assert found == [path]
    assert resolved == ["fit", *(part.format(path) for part in form), "--seed_everything", "3"]


@pytest.mark.parametrize(("text", "reason"), [("[1, 2]", "not list"), ("", "not NoneType")])
def test_a_config_must_hold_keys_and_values(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"a\.yaml must hold keys and values, {reason}"):
        read_settings(path)


def test_broken_yaml_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("data: {tasks: [")
    with pytest.raises(ValueError, match=r"(?s)a\.yaml: broken YAML at line"):
        read_settings(path)


def test_an_error_names_the_last_file_that_has_the_key(tmp_path: Path) -> None:
    paths = [tmp_path / "a.yaml", tmp_path / "b.yaml", tmp_path / "c.yaml"]
    for path, rank in zip(paths, ({"rank": 1}, {"rank": "x"}, {"width": 1}), strict=True):
        path.write_text(yaml.safe_dump({"model": rank}))
    error = Explanation("model.rank: expected an integer, got 'x'", "model.rank")
    assert name_config(error, paths, []) == f"{paths[1]}: {error.text}"
    assert name_config(error, paths, ["--model.rank=x"]) == error.text
    assert name_config(Explanation("something else"), paths, []) == "something else"


def test_an_error_of_a_task_names_the_task(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    tasks = [{"name": "one", "epochs": 1}, {"name": "two", "epoch": 1}]
    path.write_text(yaml.safe_dump({"data": {"tasks": tasks}}))
    error = Explanation("data.tasks: Task has no argument 'epoch'", "data.tasks", "epoch")
    assert name_config(error, [path], []) == f"{path}: {error.text}; in task 'two'"


@pytest.mark.parametrize("flag", ["--data.tasks.epochs", "--data.tasks.train=x"])
def test_a_flag_for_a_key_of_all_tasks_is_refused(flag: str) -> None:
    with pytest.raises(ValueError, match=r"^--data\.tasks\.\w+ would change the last task only"):
        resolve_configs(["fit", "--config", "quickstart.yaml", flag, "1"])


def test_a_size_that_a_later_config_changes_is_named(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("bench.yaml", "method.yaml", "own.yaml")]
    contents = (
        {"model": {"alpha": 256, "optimizer": {"init_args": {"lr": 0.1}}}},
        {"model": {"alpha": 10, "optimizer": {"init_args": {"lr": 0.1}}}},
        {"data": {"batch_size": 2}},
    )
    for path, content in zip(paths, contents, strict=True):
        path.write_text(yaml.safe_dump(content))
    assert replaced_sizes(paths) == ["method.yaml replaces model.alpha of bench.yaml: 256 -> 10"]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("benchmark", ["quickstart.yaml", "coin.yaml"])
def test_a_method_replaces_no_size_of_a_benchmark(benchmark: str, method: Path) -> None:
    texts = replaced_sizes([SHIPPED / benchmark, SHIPPED / method])
    assert not [text for text in texts if "budget_fraction" not in text]


def test_every_yaml_of_the_checkout_is_a_mapping() -> None:
    for name in [*WHOLE, *BENCHMARKS, *METHODS, *STREAMS, *MODELS, *HARDWARE]:
        assert read_settings(SHIPPED / name)


# the contract tests build every method, those of benchmarks read every benchmark
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in [*METHODS, *BENCHMARKS]]


@pytest.mark.parametrize("name", [*WHOLE, *SLOW, *STREAMS, *HARDWARE], ids=str)
def test_every_config_builds_a_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dmole.cli.lightning import ContinualCLI

    monkeypatch.chdir(tmp_path)
    own = ["--config", str(SHIPPED / name)]
    part = name in [*METHODS, *STREAMS, *OVERLAYS, *HARDWARE]
    base = ["--config", str(SHIPPED / "quickstart.yaml")] if part else []
    # the base models of the benchmarks would be downloaded
    flags = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.num_nodes", "1"]
    flags += ["--model.backbone.init_args.name_or_path", "tiny"]
    cli = ContinualCLI([*base, *own, *flags], run=False)
    assert cli.datamodule.task_names
    assert cli.datamodule.training_task_names
    stream = cli.trainer.sequence.stream  # one that is not planned finds its stages in a run
    assert not stream.planned or stream.stages(cli.datamodule.task_names) is not None
    expected = read_settings(SHIPPED / name).get("model", {}).get("router", {})
    if expected:
        router = type(cli.model.router)
        assert expected["class_path"].rpartition(".")[2] == router.__name__
    assert list(tmp_path.iterdir()) == []  # building writes nothing
    config = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
    settings = from_config(config, Path("config.yaml"), trusted=())
    again = as_config(settings)
    assert again["model"]["router"] == config["model"]["router"]
    assert again["trainer"]["stream"] == config["trainer"]["stream"]
    assert again["data"]["tasks"] == config["data"]["tasks"]


@pytest.mark.parametrize(
    ("method", "shared"), [("dmole", None), ("seq_ft", "shared"), ("replay", "shared")]
)
def test_a_stream_replaces_that_of_any_method_and_keeps_its_expert(
    method: str, shared: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dmole.cli.lightning import ContinualCLI
    from dmole.streams.stream import BlurredStream

    monkeypatch.chdir(tmp_path)
    names = ["quickstart.yaml", f"methods/{method}.yaml", "streams/blurred.yaml"]
    words = [word for name in names for word in ("--config", str(SHIPPED / name))]
    stream = ContinualCLI(words, run=False).trainer.sequence.stream
    assert isinstance(stream, BlurredStream)
    assert (stream.beta, stream.shared_expert) == (0.2, shared)


@pytest.mark.parametrize("machine", HARDWARE, ids=str)
def test_a_machine_goes_on_top_of_a_method_and_leaves_it_as_it_is(machine: Path) -> None:
    from dmole.cli.plan import read_config

    words = ["--config", "coin.yaml", "--config", "methods/seq_ft.yaml"]
    before, after = read_config(words), read_config([*words, "--config", str(machine)])
    changed = {key for key in before["model"] if before["model"][key] != after["model"][key]}
    assert changed == {"backbone"}  # coin.yaml recomputes activations already
    base = before["model"]["backbone"]["init_args"] | {"attn_implementation": "sdpa"}
    assert after["model"]["backbone"]["init_args"] == base
    assert after["data"]["tasks"] == before["data"]["tasks"]
    assert after["data"]["max_tokens_per_batch"] >= 2048
    assert after["trainer"]["precision"] == "bf16-mixed"
