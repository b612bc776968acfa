"""The adapters of an export give, with PEFT, the logits of the routed model's gate sets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dmole
from dmole.cli.main import main
from dmole.inference import RoutedModel, make_request
from dmole.inference.loading import load_router
from dmole.publish.adapters import RANKS, export_adapters
from dmole.run.export_file import read_export
from dmole.storage.digests import file_digest
from dmole.storage.tensors import read_tensor_file, write_tensor_file

TOLERANCE = 1e-4
"""Of logits whose size is about ten: float32 adds the terms in another order."""
PROMPTS = ("how many?", "name the paint on the star", "read the word")
RANK = {"paint": 5, "count": 12}


@pytest.fixture(scope="module")
def run(quick_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run with uneven ranks and scalings, whose last stage has used a pair."""
    copy = shutil.copytree(quick_run, tmp_path_factory.mktemp("uneven") / "run")
    for name, rank in RANK.items():
        folder = copy / "experts" / name
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = read_tensor_file(folder / "adapter_model.safetensors")
        changed = config["target_modules"][::3]
        generator = torch.Generator().manual_seed(rank)
        for path in changed:
            down, up = (f"base_model.model.{path}.lora_{part}.weight" for part in "AB")
            tensors[down] = torch.randn(rank, tensors[down].shape[1], generator=generator) / 20
            tensors[up] = torch.randn(len(tensors[up]), rank, generator=generator) / 20
        config["rank_pattern"] = dict.fromkeys(changed, rank)
        config["alpha_pattern"] = dict.fromkeys(changed, 7.0)
        write_tensor_file(folder / "adapter_model.safetensors", tensors, name)
        (folder / "adapter_config.json").write_text(json.dumps(config))
    with (copy / "routing.csv").open("a") as file:
        file.write(
            "1,paint,count+paint,1,test\n2,count,count+paint,3,test\n2,count,count,1,train\n"
        )
    renew_digests(copy)
    return copy


@pytest.fixture(scope="module")
def export(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exports") / "adapters-of-run"
    assert main(["export", str(run), str(output), "--for", "vllm", "--base", "org/model"]) == 0
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    return output


@pytest.fixture(scope="module")
def routed(run: Path) -> RoutedModel:
    return dmole.load(run)


def renew_digests(run: Path) -> None:
    content = json.loads((run / "digests.json").read_text())
    content["files"] = {name: file_digest(run / name) for name in content["files"]}
    (run / "digests.json").write_text(json.dumps(content))


@torch.no_grad()
def logits(model: RoutedModel, experts: tuple[str, ...]) -> Tensor:
    batch = model._batch([make_request(text) for text in PROMPTS])
    with model.library.context.use(model._gates([experts] * len(PROMPTS), batch)):
        found: Tensor = model.backbone.outputs(batch.inputs).logits[:, -1]
    return found


@pytest.mark.parametrize("name", ["paint", "count", "paint+count"])
def test_an_adapter_gives_the_logits_of_its_gate_set_with_peft(
    routed: RoutedModel, export: Path, name: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    base: Any = AutoModelForImageTextToText.from_pretrained(
        routed.backbone.name_or_path, dtype=torch.float32
    )
    adapted: Any = PeftModel.from_pretrained(base, export / "adapters" / name)
    inputs = routed._batch([make_request(text) for text in PROMPTS]).inputs
    with torch.no_grad():
        found = adapted(**inputs).logits[:, -1]
    expected = logits(routed, tuple(name.split("+")))
    assert (expected - logits(routed, ())).abs().max() > 100 * TOLERANCE
    assert (found - expected).abs().max() < TOLERANCE


def test_an_adapter_has_one_rank_one_scaling_and_the_name_of_the_served_model(
    export: Path,
) -> None:
    ranks = {}
    for folder in (export / "adapters").iterdir():
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "org/model"
        assert config["lora_alpha"] == config["r"]
        assert not config.get("rank_pattern")
        tensors = read_tensor_file(folder / "adapter_model.safetensors")
        found = {t.shape[0 if "lora_A" in key else 1] for key, t in tensors.items()}
        assert found == {config["r"]}
        ranks[folder.name] = config["r"]
    assert ranks["paint"] == 8
    assert ranks["count"] == 12
    assert 12 < ranks["paint+count"] <= 20
    text = (export / "README.md").read_text()
    assert "--enable-tower-connector-lora --max-lora-rank 32" in text
    assert "vllm serve org/model" in text


def test_the_sets_of_the_last_evaluation_are_exported_once_in_the_order_of_the_run(
    export: Path,
) -> None:
    made = read_export(export)
    assert made.experts == ("paint", "count")
    assert made.adapters == {
        "paint": ("paint",),
        "count": ("count",),
        "paint+count": ("paint", "count"),
    }
    assert not (export / "experts").exists()
    assert (export / "router" / "router.json").is_file()


def large_rank(run: Path) -> None:
    for path in run.glob("experts/*/adapter_model.safetensors"):
        tensors = read_tensor_file(path)
        padded = {
            key: torch.nn.functional.pad(t, (0, 0, 0, 600) if "lora_A" in key else (0, 600))
            for key, t in tensors.items()
        }
        write_tensor_file(path, padded, path.parent.name)
        config = json.loads((path.parent / "adapter_config.json").read_text())
        downs = [key for key in padded if key.endswith(".lora_A.weight")]
        names = {key: key[len("base_model.model.") : -len(".lora_A.weight")] for key in downs}
        config["rank_pattern"] = {names[key]: len(padded[key]) for key in downs}
        (path.parent / "adapter_config.json").write_text(json.dumps(config))
    renew_digests(run)


def mixture(run: Path) -> None:
    folder = run / "experts" / "paint"
    content = {"base_model": "tiny", "layers": {"some.linear": [2, 4.0, 2, 0]}}
    (folder / "mixture.json").write_text(json.dumps(content))
    shapes = {"lora_a": (2, 3), "lora_b_0": (3, 2), "lora_b_1": (3, 2)}
    tensors = {f"some.linear.{key}": torch.ones(shape) for key, shape in shapes.items()}
    write_tensor_file(folder / "mixture.safetensors", tensors, "paint")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (large_rank, "vLLM takes at most 512"),
        (mixture, "is a mixture (some.linear)"),
        (lambda run: (run / "routing.csv").write_text("a,b\n"), "routing.csv is not the file"),
    ],
    ids=["rank", "mixture", "table"],
)
def test_what_vllm_cannot_serve_is_refused_in_one_line_and_leaves_nothing(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    message: str,
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    damage(copy)
    assert main(["export", str(copy), str(tmp_path / "out"), "--for", "vllm"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_maximum_rank_is_one_that_vllm_knows(run: Path, export: Path) -> None:
    assert json.loads((export / "routers.json").read_text())["max_lora_rank"] in RANKS
    with pytest.raises(ValueError, match=r"exists; name another output"):
        export_adapters(run, export)


def test_a_router_alone_chooses_as_the_whole_model_and_does_not_answer(
    routed: RoutedModel, export: Path
) -> None:
    router = load_router(export, read_export(export), base="tiny")
    requests = [make_request(text) for text in PROMPTS]
    assert router.route_requests(requests) == routed.route_requests(requests)
    with pytest.raises(ValueError, match=r"cannot answer"):
        router.answer(requests)
