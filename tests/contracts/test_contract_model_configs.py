"""The configs of the model families: they parse, and work on a tiny model of their family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from families import FAMILIES
from families.saved import Folders

from dmole.cli.config_files import read_settings
from dmole.cli.lightning import ContinualCLI
from dmole.cli.main import main
from dmole.metrics import read_matrix
from dmole.models import Patterns, PretrainedBackbone, discover

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
QUICK = ("llava",)
TASKS = [
    {
        "name": name,
        "train": f"synthetic://{name}/train?size=8",
        "test": f"synthetic://{name}/test?size=2",
        "max_new_tokens": 2,
    }
    for name in ("paint", "count")
]


def settings(family: str) -> dict[str, Any]:
    return read_settings(CONFIGS / "models" / f"{family}.yaml")["model"]["backbone"]["init_args"]


def test_there_is_a_config_for_every_family() -> None:
    assert sorted(path.stem for path in (CONFIGS / "models").glob("*.yaml")) == sorted(FAMILIES)


def test_a_config_names_a_published_model_and_sets_what_others_set(family: str) -> None:
    found = settings(family)
    keys = {"name_or_path", "dtype", "attn_implementation", "patterns", "quantization"}
    assert set(found) == {*keys, "image_settings"}
    assert found["name_or_path"].count("/") == 1
    assert (found["dtype"], found["attn_implementation"]) == ("bfloat16", "sdpa")


def test_a_config_composes_with_a_benchmark_without_loading_weights(
    family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = [CONFIGS / "quickstart.yaml", CONFIGS / "models" / f"{family}.yaml"]
    words = [word for path in configs for word in ("--config", str(path))]
    with pytest.raises(SystemExit) as ended:
        ContinualCLI([*words, "--print_config"], run=False)
    assert ended.value.code == 0
    parsed = yaml.safe_load(capsys.readouterr().out)["model"]["backbone"]["init_args"]
    expected = settings(family)
    assert parsed.pop("patterns") == _whole(expected.pop("patterns"))
    assert expected.items() <= parsed.items()


def _whole(patterns: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if patterns is None else vars(Patterns(**patterns))


def test_image_settings_fit_the_processor_of_the_family(family: str, folders: Folders) -> None:
    expected = settings(family)["image_settings"] or {}
    backbone = PretrainedBackbone(str(folders(family)), image_settings=expected)
    found = backbone.processor.image_processor
    for name, value in expected.items():
        edge = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}.get(name)
        if edge is not None:
            assert getattr(found.size, edge) == value
        elif isinstance(value, dict):
            assert value.items() <= dict(getattr(found, name)).items()
        else:
            assert getattr(found, name) == value


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_no_expert_is_placed_after_the_block_that_the_projector_reads(name: str) -> None:
    """Built with the published depths and no weights: CLIP has 24 layers, read before the last."""
    import transformers

    kind = {"llava": "Llava", "llava_next": "LlavaNext"}[name]
    config = getattr(transformers, f"{kind}Config")()
    assert (config.vision_config.num_hidden_layers, config.vision_feature_layer) == (24, -2)
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    layers = discover(model, Patterns(**settings(name)["patterns"])).blocks
    modules = [layer.modality for layer in layers]
    assert modules.count("vision") == 23
    assert layers[22].path.endswith("layers.22")
    assert modules.count("language") == config.text_config.num_hidden_layers


@pytest.mark.parametrize(
    "name", [pytest.param(f, marks=[] if f in QUICK else pytest.mark.slow) for f in FAMILIES]
)
def test_two_tasks_are_learned_with_the_config_of_the_family(
    name: str, folders: Folders, tmp_path: Path
) -> None:
    small = {
        "trainer": {
            "name": name,
            "default_root_dir": str(tmp_path),
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "no_figures.NoFigures"}],
        },
        "model": {
            "backbone": {
                "init_args": {
                    "name_or_path": str(folders(name)),
                    "dtype": "float32",
                    "image_settings": None,  # made for large images
                }
            }
        },
        "data": {"batch_size": 4, "eval_batch_size": 4, "tasks": TASKS},
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small), encoding="utf-8")
    words = [str(CONFIGS / "quickstart.yaml"), str(CONFIGS / "models" / f"{name}.yaml"), str(path)]
    configs = [word for p in words for word in ("--config", p)]
    assert main(["fit", *configs, "--trust_classes", "no_figures"]) == 0
    run = tmp_path / name / "version_0"
    matrix, tasks = read_matrix(run / "evaluation_matrix.csv")
    assert tasks == ["paint", "count"]
    assert matrix.shape == (3, 2)
    for task in tasks:
        assert (run / "experts" / task / "adapter_model.safetensors").is_file()
