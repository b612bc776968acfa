"""A bundle answers as its run does, names nothing of this machine, and is whole or absent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import dmole
from dmole.cli.main import main
from dmole.inference import RoutedModel, make_request
from dmole.storage.digests import file_digest

Edit = Callable[[Path], object]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, quick_run: Path) -> Path:
    """A home folder with a copy of the run whose base model, data and name lie in that folder."""
    home = tmp_path_factory.mktemp("homes") / "zoe-quux"
    run = shutil.copytree(quick_run, home / "runs" / "zoe-quux" / "version_0")
    base = Path(dmole.load(quick_run).backbone.name_or_path)
    shutil.copytree(base, home / "models" / "base")
    content = json.loads((run / "model.json").read_text())
    content["model"]["backbone"]["settings"]["name_or_path"] = str(home / "models" / "base")
    content["data"]["data_root"] = str(home / "data")
    content["data"]["tasks"][0] |= {
        "train": str(home / "data" / "zoe.json"),
        "image_root": str(home),
    }
    content["trainer"]["name"] = "zoe-quux"
    (run / "model.json").write_text(json.dumps(content))
    for config in run.glob("experts/*/adapter_config.json"):
        adapter = json.loads(config.read_text())
        config.write_text(json.dumps({**adapter, "base_model_name_or_path": str(home / "models")}))
    renew_digests(run)
    return home


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    return home / "runs" / "zoe-quux" / "version_0"


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bundles") / "experts-of-paint"
    words = ["--license", "apache-2.0", "--data_source", "count=drawn by a program"]
    assert main(["bundle", str(run), str(output), *words]) == 0
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    return output


def renew_digests(run: Path) -> None:
    """Write the digests of changed files, so that the run is as if it had written them."""
    path = run / "digests.json"
    content = json.loads(path.read_text())
    content["files"] = {name: file_digest(run / name) for name in content["files"]}
    path.write_text(json.dumps(content))


def test_no_byte_of_a_bundle_names_a_path_or_the_user(home: Path, run: Path, bundle: Path) -> None:
    words = [str(home), str(bundle.parent), str(Path.home()), "zoe-quux", "zoe-", "/tmp", "/var/"]
    assert (run / "embeddings").is_dir()
    assert (run / "case_images.jsonl").is_file()
    for path in bundle.rglob("*"):
        assert "quux" not in path.name
        assert "embeddings" not in str(path.relative_to(bundle))
        assert "case_images" not in path.name
        if path.is_file():
            content = path.read_bytes()
            found = [word for word in words if word.encode() in content]
            assert found == [], path.name


def test_a_bundle_answers_as_its_run_bit_for_bit(home: Path, run: Path, bundle: Path) -> None:
    base = home / "models" / "base"
    models = [dmole.load(run), dmole.load(bundle, base=base)]
    requests = [make_request(text) for text in ("how many?", "name the paint on the star", "read")]
    assert models[0].experts == models[1].experts
    assert models[0].answer(requests) == models[1].answer(requests)
    assert torch.equal(models[0].embed(requests), models[1].embed(requests))
    for name in models[0].experts:
        tensors = [model.library.state_dict(name) for model in models]
        assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])


def test_the_card_states_base_tasks_figures_sources_and_licence(run: Path, bundle: Path) -> None:
    text = (bundle / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    metrics = json.loads((run / "metrics.json").read_text())
    assert head["library_name"] == "peft"
    assert head["pipeline_tag"] == "image-text-to-text"
    assert head["license"] == "apache-2.0"
    found = {
        each["name"]: each["value"] for each in head["model-index"][0]["results"][0]["metrics"]
    }
    assert found == {name: metrics[name] for name in ("Last", "BWT")}
    assert metrics["fingerprints"]["base"] in text
    assert "task after task: 2 LoRA experts, and" in text
    assert "drawn by a program" in text
    assert "| zoe.json |" in text  # the file's name without its folder


def test_an_expert_of_a_bundle_loads_with_peft(home: Path, bundle: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    base: Any = AutoModelForImageTextToText.from_pretrained(home / "models" / "base")
    adapted = PeftModel.from_pretrained(base, bundle / "experts" / "paint")
    names = [name for name, _ in adapted.named_parameters() if "lora_A" in name]
    saved = json.loads((bundle / "experts" / "paint" / "adapter_config.json").read_text())
    assert len(names) == len(saved["target_modules"])
    assert saved["base_model_name_or_path"] is None


def test_a_bundle_without_a_public_base_model_asks_for_it_by_its_hash(bundle: Path) -> None:
    with pytest.raises(ValueError, match=r"base model has no public name.*SHA-256 5a8353.*base="):
        dmole.load(bundle)


def test_a_base_model_of_other_weights_is_refused(home: Path, bundle: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(home / "models" / "base", tmp_path / "other")
    (file,) = other.glob("*.safetensors")
    tensors = load_file(file)
    name = next(key for key in tensors if key.endswith("q_proj.weight"))
    tensors[name][0, 0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"experts-of-paint was made with a base model of other we"
    ):
        dmole.load(bundle, base=other)
    model = dmole.load(bundle, base=other, accept_changes=True)
    assert isinstance(model, RoutedModel)


def test_the_base_model_is_the_one_that_bundle_json_names(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    content = json.loads((copy / "bundle.json").read_text())
    content["base"]["weights"] = "0" * 64
    (copy / "bundle.json").write_text(json.dumps(content))
    renew_digests(copy)
    with pytest.raises(ValueError, match=r"copy was made with a base model of other weights"):
        dmole.load(copy, base="tiny")


def test_weights_that_a_run_did_not_record_cannot_be_verified(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    content = json.loads((copy / "metrics.json").read_text())
    del content["fingerprints"]
    (copy / "metrics.json").write_text(json.dumps(content))
    renew_digests(copy)
    with pytest.raises(ValueError, match=r"metrics.json has no fingerprint of the base model"):
        dmole.load(copy, verify_base=True)


def change_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("change", [change_byte, Path.unlink], ids=["altered", "missing"])
@pytest.mark.parametrize(
    "name",
    [
        "bundle.json",
        "model.json",
        "metrics.json",
        "experts/experts.json",
        "experts/paint/adapter_model.safetensors",
        "experts/count/adapter_config.json",
        "router/router.json",
        "router/count.safetensors",
    ],
)
def test_an_altered_or_missing_file_of_a_bundle_is_named_in_one_line(
    bundle: Path, tmp_path: Path, name: str, change: Edit
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    change(copy / name)
    with pytest.raises(ValueError, match=name.rpartition("/")[2]) as error:
        dmole.load(copy, base="tiny")
    assert "\n" not in str(error.value)


def lose_a_stage(run: Path) -> None:
    """Leave the run as it was after its first stage."""
    for name in ("evaluation_matrix.csv", "oracle_matrix.csv"):
        lines = (run / name).read_text().splitlines(keepends=True)
        (run / name).write_text("".join(lines[:-1]))
    renew_digests(run)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_a_stage, "has learned 1 of 2 tasks"),
        (lambda run: (run / "digests.json").unlink(), "earlier version"),
        (lambda run: change_byte(run / "experts/paint/adapter_model.safetensors"), "adapter_model"),
        (lambda run: (run / "router/paint.safetensors").unlink(), "router/paint.safetensors"),
        (lambda run: (run / "model.json").write_text("{}"), "model.json"),
        (lambda run: (run / "disabled.json").write_text('["paint"]'), "disabled experts (paint)"),
    ],
)
def test_an_unfinished_or_damaged_run_is_refused_in_one_line_and_leaves_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Edit, message: str
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    damage(copy)
    assert main(["bundle", str(copy), str(tmp_path / "out")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_wrong_arguments_are_refused_and_leave_nothing(
    run: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    for words, message in [
        ([str(run), str(bundle)], "exists"),
        ([str(bundle), out], "is a bundle already"),
        ([str(run), out, "--data_source", "other=x"], "no task 'other'; there are paint, count"),
        ([str(run), out, "--data_source", "paint"], "must be TASK=TEXT"),
        ([str(run), out, "--data_source", "paint=/home/zoe/x.json"], "README.md names"),
        ([str(run), out, "--base", "/home/zoe/model"], "--base must be a name on the hub"),
        ([str(run), str(run / "out")], "inside the run folder"),
    ]:
        assert main(["bundle", *words]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert message in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_predict_answers_with_a_bundle(home: Path, run: Path, bundle: Path, tmp_path: Path) -> None:
    words = ["--prompt", "how many?", "--max_new_tokens", "3", "--output"]
    base = ["--base", str(home / "models" / "base")]
    files = [tmp_path / "run.json", tmp_path / "bundle.json"]
    assert main(["predict", str(run), *words, str(files[0])]) == 0
    assert main(["predict", str(bundle), *base, *words, str(files[1])]) == 0
    assert json.loads(files[0].read_text()) == json.loads(files[1].read_text())
