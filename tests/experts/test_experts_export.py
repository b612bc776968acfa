"""Expert files: the PEFT layout, a round trip to the bit, and files that do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import all_linears, make_backbone, make_batch, make_samples, randomize
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from dmole.experts import ExpertLibrary, ExpertShape, Gates, load_expert, save_expert


def make_library(seed: int = 0) -> ExpertLibrary:
    model = nn.ModuleDict({"x": nn.Linear(4, 3), "y": nn.Linear(3, 5)})
    return ExpertLibrary(model, lambda _: "language", seed=seed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    library = make_library()
    library.add("a", {"x": 2, "y": 3}, {"x": 4.0, "y": 9.0})
    randomize(library, "a")
    save_expert(library, "a", tmp_path / "a", "some/base")
    return tmp_path / "a"


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_round_trip_gives_back_every_bit_rank_and_scaling(folder: Path) -> None:
    source, target = make_library(), make_library(seed=5)
    load_expert(source, "a", folder)
    load_expert(target, "again", folder)
    assert source.architecture()["a"] == {"x": [2, 4.0], "y": [3, 9.0]}
    assert target.architecture()["again"] == source.architecture()["a"]
    original = make_library()
    original.add("a", {"x": 2, "y": 3}, {"x": 4.0, "y": 9.0})
    randomize(original, "a")
    for key, tensor in original.state_dict("a").items():
        assert torch.equal(target.state_dict("again")[key], tensor)


def test_the_config_says_what_peft_needs_and_names_the_base_model(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/base"
    assert config["peft_type"] == "LORA"
    assert config["target_modules"] == ["x", "y"]
    assert {config["r"], *config["rank_pattern"].values()} == {2, 3}
    assert set(load_file(folder / "adapter_model.safetensors")) == {
        f"base_model.model.{path}.lora_{part}.weight" for path in "xy" for part in "AB"
    }


def test_saving_again_replaces_the_files_and_leaves_nothing_beside_them(folder: Path) -> None:
    library = make_library()
    load_expert(library, "a", folder)
    save_expert(library, "a", folder, "other/base")
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


PREFIX = "base_model.model."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(PREFIX + "y.lora_B.weight"), "tensor y.lora_b is missing"),
        (lambda t: t.pop(PREFIX + "y.lora_A.weight"), "tensor y.lora_a is missing"),
        (
            lambda t: t.update({PREFIX + "x.lora_magnitude.weight": torch.ones(3)}),
            "tensor base_model.model.x.lora_magnitude.weight is unknown",
        ),
        (
            lambda t: t.update({PREFIX + "z.lora_A.weight": torch.ones(2, 4)}),
            "no linear 'z'|tensor z.lora_b is missing",
        ),
        (
            lambda t: t.update({PREFIX + "y.lora_B.weight": torch.ones(5, 2)}),
            r"tensor y.lora_b has shape \(5, 2\), the model expects \(5, 3\)",
        ),
        (
            lambda t: t.update({PREFIX + "y.lora_A.weight": torch.ones(3, 7)}),
            r"tensor y.lora_a has shape \(3, 7\), the model expects \(3, 3\)",
        ),
        (lambda t: t.clear(), "allocation of 'b' is empty"),
    ],
    ids=["no B", "no A", "unknown part", "unknown linear", "wrong B", "wrong A", "empty"],
)
def test_tensors_that_do_not_fit_are_refused_and_leave_the_library_as_it_was(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    edit_tensors(folder, change)
    library = make_library()
    with pytest.raises(ValueError, match=message) as caught:
        load_expert(library, "b", folder)
    assert "\n" not in str(caught.value)
    assert library.names == ()
    assert isinstance(library.model["x"], nn.Linear)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"bias": "all"},
        {"fan_in_fan_out": True},
        {"peft_type": "IA3"},
    ],
    ids=str,
)
def test_adapters_of_another_kind_are_refused(folder: Path, changes: dict[str, Any]) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=next(iter(changes))):
        load_expert(make_library(), "b", folder)


def test_a_config_without_alpha_is_refused(folder: Path) -> None:
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    del config["lora_alpha"]
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="lora_alpha"):
        load_expert(make_library(), "b", folder)


def test_missing_and_damaged_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read expert .*nowhere"):
        load_expert(make_library(), "b", tmp_path / "nowhere")
    config_only = shutil.copytree(folder, tmp_path / "config_only")
    (config_only / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"config_only.*: No such file"):
        load_expert(make_library(), "b", config_only)
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"cannot read .*adapter_model.safetensors"):
        load_expert(make_library(), "b", folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot read expert"):
        load_expert(make_library(), "b", folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 10**9}, "linear [xy] has rank . in its tensors, 1000000000 in adapter_config.json"),
        ({"r": None}, "linear [xy] has rank . in its tensors, None"),
        ({"rank_pattern": {"y": 4}}, "linear [xy] has rank"),
        ({"rank_pattern": [1]}, "rank_pattern must hold keys and values"),
        ({"lora_alpha": float("nan")}, "lora_alpha: the number nan is not finite"),
        ({"lora_alpha": "8"}, "lora_alpha must be a finite number, got '8'"),
        ({"alpha_pattern": {"y": float("inf")}}, "alpha_pattern.y: the number inf is not finite"),
    ],
    ids=str,
)
def test_sizes_that_the_tensors_do_not_have_are_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_expert(make_library(), "b", folder)


def test_an_empty_tensor_that_claims_a_billion_ranks_takes_no_memory(folder: Path) -> None:
    edit_tensors(
        folder,
        lambda t: t.update(
            {
                PREFIX + "x.lora_A.weight": torch.empty(10**9, 0),
                PREFIX + "x.lora_B.weight": torch.empty(0, 10**9),
            }
        ),
    )
    edit_config(folder, rank_pattern={"x": 10**9, "y": 3})
    library = make_library()
    with pytest.raises(ValueError, match=r"lora_A.weight has shape \(1000000000, 0\)"):
        load_expert(library, "b", folder)
    assert library.names == ()


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.full((3, 2), float("nan")), "x.lora_B.weight holds a number that is not finite"),
        (torch.ones(3, 2, dtype=torch.int64), "shape .*int64"),
        (torch.ones(3), "has shape"),
        (torch.ones(3, 0), r"has shape \(3, 0\)"),
    ],
    ids=["nan", "whole numbers", "one axis", "rank 0"],
)
def test_tensors_that_are_no_weights_are_refused(
    folder: Path, tensor: torch.Tensor, message: str
) -> None:
    edit_tensors(folder, lambda t: t.update({PREFIX + "x.lora_B.weight": tensor}))
    with pytest.raises(ValueError, match=message):
        load_expert(make_library(), "b", folder)


def test_a_bit_flipped_anywhere_in_the_tensors_is_noticed(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    data = 8 + int.from_bytes(whole[:8], "little")
    for place in range(data, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
            load_expert(make_library(), "b", folder)


def test_a_bit_flipped_in_the_header_is_noticed_or_changes_nothing(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    reference = make_library()
    load_expert(reference, "a", folder)
    loaded = 0
    for place in range(8 + int.from_bytes(whole[:8], "little")):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 7
        file.write_bytes(damaged)
        library = make_library()
        try:
            load_expert(library, "a", folder)
        except ValueError:
            continue
        loaded += 1
        assert library.digest("a") == reference.digest("a")
    assert loaded < 40  # only the remarks may change unnoticed


def test_a_file_without_digest_as_peft_writes_it_is_loaded(folder: Path) -> None:
    edit_tensors(folder, lambda t: None)
    library = make_library()
    load_expert(library, "b", folder)
    assert library.names == ("b",)


def rank_of(i: int) -> int:
    return (2, 4, 4, 1)[i % 4]


@pytest.mark.parametrize("family", ["llava", "idefics3"])
def test_peft_gives_the_oracle_outputs_with_several_ranks(family: str, tmp_path: Path) -> None:
    from peft import PeftModel

    backbone = make_backbone(family)
    plain = make_backbone(family).model  # the same weights
    parts = backbone.parts
    library = ExpertLibrary(
        backbone.model,
        lambda path: "language" if parts.modality_of(path) == "language" else "vision",
        dropout=0.05,
    )
    paths = all_linears(backbone)
    for name, chosen in (("a", paths), ("b", paths[::2])):
        ranks = {path: rank_of(i) for i, path in enumerate(chosen)}
        alphas = {path: 2.0 + 3 * (i % 3) for i, path in enumerate(chosen)}
        library.add(name, ranks, alphas)
        randomize(library, name, 0.1)
        save_expert(library, name, tmp_path / name, "tiny")
    backbone.double()  # so that only the formula counts, not the order of sums
    plain.double()
    batch = make_batch(backbone, make_samples((1, 0, 2)))
    batch.inputs["pixel_values"] = batch.inputs["pixel_values"].double()
    rows = backbone.vision_rows(batch.inputs, batch.image_counts)
    with torch.no_grad():
        base = plain(**batch.inputs, use_cache=False).logits
        for column, name in enumerate(library.names):
            weights = torch.eye(2)[column].expand(3, 2)
            with library.context.use(Gates(library.names, weights, rows)):
                ours = backbone.model(**batch.inputs, use_cache=False).logits
            peft = PeftModel.from_pretrained(plain, tmp_path / name).double()
            theirs = peft(**batch.inputs, use_cache=False).logits
            plain = peft.unload()
            assert (ours - base).abs().max() > 1e-2
            assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


# -- experts that PEFT cannot hold ------------------------------------------------------------

MIXTURES = {
    "side by side": {"x": ExpertShape(4, 8.0, heads=2), "y": ExpertShape(3, 9.0)},
    "branches": {"x": ExpertShape(2, 4.0, branches=3), "y": ExpertShape(1, 2.0, branches=3)},
    "router alone": {"x": ExpertShape(0, 4.0, branches=0, heads=3)},
}


def make_mixture(kind: str) -> ExpertLibrary:
    library = make_library()
    library.add_shapes("m", MIXTURES[kind])
    randomize(library, "m")
    if kind == "branches":
        for _, expert in library.experts("m"):
            expert.frozen[1] = 1.0
    return library


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    save_expert(make_mixture("branches"), "m", tmp_path / "m", "some/base")
    return tmp_path / "m"


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_mixture_comes_back_with_every_bit_its_shapes_and_what_is_frozen(
    kind: str, tmp_path: Path
) -> None:
    source, target = make_mixture(kind), make_library(seed=5)
    save_expert(source, "m", tmp_path / "m", "some/base")
    names = sorted(path.name for path in (tmp_path / "m").iterdir())
    assert names == ["mixture.json", "mixture.safetensors"]
    assert json.loads((tmp_path / "m" / "mixture.json").read_text())["base_model"] == "some/base"
    load_expert(target, "again", tmp_path / "m")
    assert target.architecture()["again"] == source.architecture()["m"]
    theirs = target.state_dict("again")
    assert theirs.keys() == source.state_dict("m").keys()
    for key, tensor in source.state_dict("m").items():
        assert torch.equal(theirs[key], tensor)


def edit_mixture(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "mixture.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("layers"),
        lambda c: c.update(layers=[1, 2]),
        lambda c: c["layers"].update(x=[2, 4.0, 3]),
        lambda c: c["layers"].update(x="2"),
        lambda c: c["layers"].update(x=None),
        lambda c: c["layers"].update(x=["two", 4.0, 3, 0]),
        lambda c: c["layers"].update(x=[float("inf"), 4.0, 3, 0]),
        lambda c: c["layers"].update(x=[2, float("nan"), 3, 0]),
        lambda c: c["layers"].update(x=[2, 4.0, -3, 0]),
        lambda c: c["layers"].update(x=[2, 4.0, 0, 0]),
        lambda c: c["layers"].update(x=[2, 4.0, 10**9, 0]),
        lambda c: c["layers"].update(x=[2, 4.0, 3, 10**9]),
        lambda c: c["layers"].update(x=[10**9, 4.0, 3, 0]),
        lambda c: c["layers"].update(x=[2.5, 4.0, 3, 0]),
        lambda c: c["layers"].update(x=[1, 4.0, 3, 0]),
        lambda c: c["layers"].update(x=[2, 4.0, 3, 1]),
        lambda c: c["layers"].update(z=[2, 4.0, 3, 0]),
        lambda c: c["layers"].pop("y"),
        lambda c: c["layers"].clear(),
    ],
)
def test_a_mixture_that_is_not_described_as_it_is_is_refused_by_file(
    mixture: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    edit_mixture(mixture, change)
    library = make_library()
    with pytest.raises(ValueError, match=r"mixture\.json") as caught:
        load_expert(library, "b", mixture)
    assert "\n" not in str(caught.value)
    assert library.names == ()
    assert isinstance(library.model["x"], nn.Linear)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 10**5])
def test_a_description_that_is_no_json_is_refused_by_file(mixture: Path, text: str) -> None:
    (mixture / "mixture.json").write_text(text)
    with pytest.raises(ValueError, match=r"cannot read expert .*mixture\.json"):
        load_expert(make_library(), "b", mixture)


def test_missing_or_damaged_tensors_of_a_mixture_are_named(mixture: Path) -> None:
    file = mixture / "mixture.safetensors"
    whole = file.read_bytes()
    for damage in (whole[:40], whole[:-4] + bytes([whole[-4] ^ 1, *whole[-3:]])):
        file.write_bytes(damage)
        with pytest.raises(ValueError, match=r"mixture\.safetensors"):
            load_expert(make_library(), "b", mixture)
    file.unlink()
    with pytest.raises(ValueError, match=r"mixture\.safetensors"):
        load_expert(make_library(), "b", mixture)


def test_a_mixture_of_a_model_with_other_widths_is_refused_and_leaves_the_library(
    mixture: Path,
) -> None:
    other = ExpertLibrary(
        nn.ModuleDict({"x": nn.Linear(5, 3), "y": nn.Linear(3, 5)}), lambda _: "language"
    )
    with pytest.raises(ValueError, match=r"tensor x\.lora_a has shape"):
        load_expert(other, "b", mixture)
    assert other.names == ()
