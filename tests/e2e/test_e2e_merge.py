"""Merged weights load with transformers alone and answer as the routed model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_meter import PeakBytes
from torch import Tensor

import dmole
from dmole.cli.main import main
from dmole.experts.shape import ExpertShape
from dmole.inference import RoutedModel, make_request
from dmole.models import PretrainedBackbone
from dmole.publish.merge import merge_experts, merge_run

TOLERANCE = 1e-4
"""Of logits whose size is about ten: float32 adds the terms in another order."""
PROMPTS = ("how many?", "name the paint on the star", "read the word", "find the cross")


@pytest.fixture(scope="module")
def run(quick_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run whose experts change the answers strongly."""
    from dmole.storage.digests import file_digest
    from dmole.storage.tensors import read_tensor_file, write_tensor_file

    copy = shutil.copytree(quick_run, tmp_path_factory.mktemp("strong") / "run")
    for path in copy.glob("experts/*/adapter_model.safetensors"):
        tensors = read_tensor_file(path)
        louder = {k: t * 4 if "lora_B" in k else t for k, t in tensors.items()}
        write_tensor_file(path, louder, path.parent.name)
    content = json.loads((copy / "digests.json").read_text())
    content["files"] = {name: file_digest(copy / name) for name in content["files"]}
    (copy / "digests.json").write_text(json.dumps(content))
    return copy


@pytest.fixture(scope="module")
def routed(run: Path) -> RoutedModel:
    return dmole.load(run)


@torch.no_grad()
def logits(model: RoutedModel, experts: tuple[str, ...]) -> Tensor:
    """Return the logits of the last token of each prompt under a gate set."""
    batch = model._batch([make_request(text) for text in PROMPTS])
    with model.library.context.use(model._gates([experts] * len(PROMPTS), batch)):
        found: Tensor = model.backbone.outputs(batch.inputs).logits[:, -1]
    return found


@pytest.mark.parametrize("names", ["paint", "paint+count"])
def test_transformers_alone_gives_the_logits_and_answers_of_the_gate_set(
    run: Path, routed: RoutedModel, tmp_path: Path, names: str
) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    assert main(["merge", str(run), str(tmp_path / "out"), "--experts", names]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    model: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    processor: Any = AutoProcessor.from_pretrained(tmp_path / "out")
    inputs = routed._batch([make_request(text) for text in PROMPTS]).inputs
    with torch.no_grad():
        found = model(**inputs).logits[:, -1]
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    expected = logits(routed, tuple(names.split("+")))
    assert (expected - logits(routed, ())).abs().max() > 100 * TOLERANCE
    assert (found - expected).abs().max() < TOLERANCE
    texts = processor.batch_decode(
        tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    asked = routed.generate(prompt=list(PROMPTS), expert=names, max_new_tokens=6)
    assert [text.strip() for text in texts] == asked


def test_tied_weights_stay_tied_and_no_file_names_a_place(run: Path, tmp_path: Path) -> None:
    merge_run(run, ["count"], tmp_path / "out", dtype="bfloat16")
    model = PretrainedBackbone(str(tmp_path / "out"), dtype="bfloat16").model
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    assert head.weight is embedding.weight
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1  # others read the weights, too, if they read the config
    for path in (tmp_path / "out").iterdir():
        assert str(run.parent).encode() not in path.read_bytes()
        assert b"dmole" not in path.read_bytes()


def test_the_sum_is_rounded_once_to_a_dtype_of_few_bits() -> None:
    backbone = PretrainedBackbone("tiny", dtype="bfloat16")
    from dmole.experts import ExpertLibrary

    library = ExpertLibrary(backbone.model, backbone.parts.modality_of)
    path = next(path for path in backbone.linear_shapes() if "language" in path)
    weight = backbone.model.get_submodule(path).weight.double()  # type: ignore[operator]
    library.add("a", {path: 4}, {path: 8.0})
    for _, expert in library.experts("a"):
        expert.lora_b.data.normal_(generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr]
        update = 2.0 * (expert.up.double() @ expert.lora_a.double())
    merge_experts(library, ["a"])
    merged: Any = backbone.model.get_submodule(path)
    assert isinstance(merged, torch.nn.Linear)
    assert torch.equal(merged.weight, (weight + update).to(torch.bfloat16))
    assert library.names == ()


@torch.no_grad()
def test_one_linear_at_a_time_is_held_in_float64() -> None:
    from dmole.experts import ExpertLibrary

    backbone = PretrainedBackbone("tiny")
    library = ExpertLibrary(backbone.model, backbone.parts.modality_of)
    paths = list(backbone.linear_shapes())
    sums = {
        path: backbone.model.get_submodule(path).weight.double()  # type: ignore[operator]
        for path in paths
    }
    generator = torch.Generator().manual_seed(0)
    updates: dict[str, Tensor] = {}
    for name in ("a", "b"):
        library.add(name, dict.fromkeys(paths, 4), dict.fromkeys(paths, 8.0))
        for path, expert in library.experts(name):
            expert.lora_b.data.normal_(generator=generator)  # type: ignore[union-attr]
            update = 2.0 * (expert.up.double() @ expert.lora_a.double())
            updates[path] = updates[path] + update if path in updates else update
    largest = max(total.numel() for total in sums.values())
    rounded = sum(total.numel() for total in sums.values()) * 2
    with PeakBytes() as meter:
        merge_experts(library, ["a", "b"], torch.bfloat16)
    # product of B and A, its scaled form, their sum, the weight, the merged weight
    assert meter.peak - meter.live < 6 * 8 * largest
    assert 6 * 8 * largest < 8 * sum(total.numel() for total in sums.values())
    assert meter.live >= rounded
    for path, total in sums.items():
        merged: Any = backbone.model.get_submodule(path)
        assert torch.equal(merged.weight, (total + updates[path]).to(torch.bfloat16)), path


def test_what_cannot_be_merged_is_refused_in_one_line_and_leaves_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    out = str(tmp_path / "out")
    for words, message in [
        (
            [str(run), out, "--experts", "other"],
            "there is no expert 'other'; the experts are paint",
        ),
        ([str(run), out, "--experts", "paint+paint"], "an expert is named twice"),
        ([str(run), out, "--experts", "base"], "there is nothing to merge"),
        ([str(run), out, "--experts", "paint", "--dtype", "int8"], "--dtype must be one of"),
        ([str(run), str(tmp_path / "there"), "--experts", "paint"], "exists; name another output"),
        ([str(tmp_path), out, "--experts", "paint"], "is no run folder"),
    ]:
        capsys.readouterr()
        assert main(["merge", *words]) == 1
        assert message in capsys.readouterr().err.splitlines()[-1]
        assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_mixtures_and_quantized_weights_are_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dmole.load(run)
    path = next(path for path, _ in model.library.experts("paint"))
    model.library.add_shapes("mixed", {path: ExpertShape(4, 8.0, branches=2)})
    monkeypatch.setattr("dmole.publish.merge.load", lambda *args, **options: model)
    with pytest.raises(ValueError, match=r"^the expert 'mixed' is a mixture"):
        merge_run(run, ["mixed"], tmp_path / "out")
    linear: Any = model.backbone.model.get_submodule(path)
    whole = linear.base.weight
    linear.base.weight = torch.nn.Parameter(whole.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"^the base model is quantized"):
        merge_run(run, ["paint"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
