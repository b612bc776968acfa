"""Adapters that PEFT wrote are read as experts; what is more than plain LoRA is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edited_runs import base
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from dmole.editing.adapters import read_adapter

FC1 = "model.vision_tower.encoder.layers.{}.mlp.fc1"
UP = "model.language_model.layers.{}.mlp.up_proj"
LINEARS: dict[str, tuple[int, int]] = {
    **{FC1.format(i): (128, 512) for i in range(4)},
    **{UP.format(i): (160, 448) for i in range(4)},
}


def write_adapter(folder: Path, ranks: dict[str, int], **config: Any) -> Path:
    """Write an adapter as PEFT does, with random factors."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for path, rank in ranks.items():
        inputs, outputs = LINEARS.get(path, (160, 781))
        tensors[f"base_model.model.{path}.lora_A.weight"] = torch.randn(
            rank, inputs, generator=generator
        )
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.randn(
            outputs, rank, generator=generator
        )
    save_file(tensors, folder / "adapter_model.safetensors")
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_dora": False}
    (folder / "adapter_config.json").write_text(json.dumps({**plain, **config}))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "lora", {FC1.format(0): 4, UP.format(1): 4})


def test_ranks_and_scalings_follow_the_patterns_as_peft_matches_them(tmp_path: Path) -> None:
    ranks = {FC1.format(0): 4, UP.format(1): 2, UP.format(2): 4, UP.format(3): 4}
    patterns: dict[str, Any] = {
        "rank_pattern": {"layers.1.mlp.up_proj": 2},
        "alpha_pattern": {"up_proj": 3, "layers.3.mlp.up_proj": 5},  # the first match counts
    }
    adapter = read_adapter(write_adapter(tmp_path / "lora", ranks, **patterns), LINEARS)
    assert adapter.ranks == ranks
    assert adapter.alphas == {FC1.format(0): 8.0, **{UP.format(i): 3.0 for i in (1, 2, 3)}}
    stabilized = write_adapter(tmp_path / "rs", ranks, use_rslora=True, **patterns)
    scalings = read_adapter(stabilized, LINEARS).alphas
    for path, rank in ranks.items():
        stated = 8 if "fc1" in path else 3
        assert scalings[path] / rank == pytest.approx(stated / rank**0.5, rel=1e-15)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_expert_of_an_adapter_gives_the_logits_of_peft(
    use_rslora: bool, tmp_path: Path
) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForImageTextToText

    from dmole.demo.tiny import TINY_PATH
    from dmole.experts import ExpertLibrary, Gates

    torch.manual_seed(0)
    plain = AutoModelForImageTextToText.from_pretrained(TINY_PATH, dtype=torch.float32).eval()
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "fc2", "linear_1"],
        rank_pattern={"layers.1.self_attn.q_proj": 7},
        alpha_pattern={"fc2": 3},
        use_rslora=use_rslora,
        init_lora_weights=False,
    )
    get_peft_model(plain, config).save_pretrained(tmp_path / "lora")
    backbone = base()
    adapter = read_adapter(tmp_path / "lora", backbone.linear_shapes())
    assert {7, 4} == set(adapter.ranks.values())
    plain = AutoModelForImageTextToText.from_pretrained(TINY_PATH, dtype=torch.float32).eval()
    theirs_model = PeftModel.from_pretrained(plain, tmp_path / "lora").eval()
    ids = torch.tensor([[1, *[3] * 64, 20, 30, 40]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 3, 64, 64),
    }
    library = ExpertLibrary(backbone.model, backbone.parts.modality_of)
    library.add("new", adapter.ranks, adapter.alphas)
    try:
        library.load_state_dict("new", adapter.tensors)
        with torch.no_grad():
            theirs = theirs_model(**inputs, use_cache=False).logits
            untouched = backbone.model(**inputs, use_cache=False).logits
            with library.context.use(Gates(("new",), torch.ones(1, 1), torch.tensor([1]))):
                ours = backbone.model(**inputs, use_cache=False).logits
    finally:
        library.remove("new")
    assert (ours - untouched).abs().max() > 0.1
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # float32, sums in another order


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is no LORA"),
        ({"use_dora": True}, "use_dora True is not supported"),
        ({"bias": "all"}, "bias 'all' is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\] is not supported"),
        ({"lora_bias": True}, "lora_bias True is not supported"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out True is not supported"),
        ({"layer_replication": [[0, 2]]}, "layer_replication .* is not supported"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens .* is not supported"),
        ({"from_tomorrow": 1}, "from_tomorrow 1 is not supported"),
        (
            {"init_lora_weights": "pissa"},
            "'pissa' changes the weights of the base",
        ),
        (
            {"alpha_pattern": {"(a+)+b": 1}},
            "quantifiers are not supported; name linears",
        ),
        ({"alpha_pattern": {"(a": 1}}, "name linears by the end of their paths"),
        ({"alpha_pattern": {"up_proj": "x"}}, "alpha_pattern of 'up_proj' must be a finite number"),
        ({"rank_pattern": 3}, "rank_pattern must hold keys and values"),
        ({"lora_alpha": None}, "lora_alpha must be a finite number, got None"),
        ({"use_rslora": "yes"}, "use_rslora must be true or false"),
        ({"r": 8}, "has rank 4 in its tensors, 8 in adapter_config.json"),
    ],
)
def test_settings_beyond_plain_lora_are_refused_by_name(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "lora", {UP.format(0): 4}, **config)
    with pytest.raises(ValueError, match=message) as caught:
        read_adapter(folder, LINEARS)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_linears_that_the_blocks_do_not_have_are_named(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "lora", {"lm_head": 4, UP.format(9): 4, UP.format(1): 4})
    with pytest.raises(
        ValueError, match=r"lm_head, model\.language_model\.layers\.9\.mlp\.up_proj"
    ):
        read_adapter(folder, LINEARS)


def change(key: str, tensor: torch.Tensor | None) -> Callable[[dict[str, torch.Tensor]], None]:
    def apply(tensors: dict[str, torch.Tensor]) -> None:
        if tensor is None:
            del tensors[key]
        else:
            tensors[key] = tensor

    return apply


A = f"base_model.model.{FC1.format(0)}.lora_A.weight"
B = A.replace("lora_A", "lora_B")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change(B, None), r"factors of shape \(4, 128\) and None, expected \(r, 128\)"),
        (change(A, torch.ones(4, 127)), r"factors of shape \(4, 127\)"),
        (change(A, torch.ones(4, 128, 1, 1)), r"factors of shape \(4, 128, 1, 1\)"),
        (change(A, torch.ones(0, 128)), r"factors of shape \(0, 128\)"),
        (change(A, torch.full((4, 128), torch.inf)), "holds a number that is not finite"),
        (change("base_model.model.x.lora_embedding_A", torch.ones(2)), "x.* is an embedding"),
        (change(f"{B[:-7]}.bias", torch.ones(512)), "lora_B.bias' is no factor of a linear"),
        (change("layers.0.lora_A.weight", torch.ones(2, 2)), "is no factor of a linear"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    edit: Callable[[dict[str, torch.Tensor]], None], message: str, folder: Path
) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=message):
        read_adapter(folder, LINEARS)


def as_bin(folder: Path, content: object) -> None:
    (folder / "adapter_model.safetensors").unlink()
    torch.save(content, folder / "adapter_model.bin")


def test_a_bin_file_of_tensors_alone_is_read_and_any_other_is_refused(folder: Path) -> None:
    expected = read_adapter(folder, LINEARS).tensors
    tensors = load_file(folder / "adapter_model.safetensors")
    as_bin(folder, tensors)
    found = read_adapter(folder, LINEARS).tensors
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    for content in ({**tensors, "x": 1}, [1]):
        torch.save(content, folder / "adapter_model.bin")
        with pytest.raises(ValueError, match="it holds other values than tensors"):
            read_adapter(folder, LINEARS)


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_a_bin_file_runs_no_code(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "PWNED"
    as_bin(folder, {"x": Evil(mark)})
    with pytest.raises(ValueError, match="as tensors alone") as caught:
        read_adapter(folder, LINEARS)
    assert not mark.exists()
    assert "\n" not in str(caught.value)


def test_a_folder_without_config_or_tensors_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no adapter of PEFT: it has no adapter_config\.json"):
        read_adapter(tmp_path, LINEARS)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 1}')
    with pytest.raises(ValueError, match=r"has neither adapter_model.safetensors nor .bin"):
        read_adapter(tmp_path, LINEARS)
