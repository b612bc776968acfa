"""Outputs of the vision encoder kept by image: those of the encoder, up to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, MLLAMA_IMAGES, make_backbone, make_batch, make_samples, randomize
from torch import Tensor, nn
from torch.testing import assert_close

from dmole.data.image_store import FolderStore, ImageStore, MemoryStore
from dmole.data.sample import Sample
from dmole.experts import ExpertLibrary, Gates
from dmole.models.backbone import Backbone
from dmole.models.shared_vision import SharedVision
from dmole.models.vision_cache import vision_store

MIXES = {"paligemma": (1, 2, 1), "mllama": MLLAMA_IMAGES}
CLOSE = {"rtol": 1e-3, "atol": 5e-3}


class Counted:
    """A backbone whose vision encoder is counted."""

    def __init__(self, family: str) -> None:
        self.backbone = make_backbone(family)
        self.library = ExpertLibrary(self.backbone.model, self.backbone.parts.modality_of)
        self.passes = 0
        block = next(block for block in self.backbone.blocks if block.modality == "vision")
        module = self.backbone.model.get_submodule(block.path)
        module.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.passes += 1

    def vision(self, store: ImageStore | None) -> SharedVision:
        return SharedVision(self.backbone, self.library, store)

    def encode(
        self, vision: SharedVision, samples: list[Sample], gates: Gates | None = None
    ) -> tuple[Tensor, Tensor, int]:
        """Return hidden states of images, logits, and the passes that they took."""
        inputs = make_batch(self.backbone, samples).inputs
        self.passes = 0
        with torch.no_grad(), vision.cached(), self.library.context.use(gates):
            hidden = self.backbone.vision_hidden(inputs)
            logits = self.backbone.outputs(inputs).logits
        return hidden, logits, self.passes


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_batches_of_all_families_are_put_together_from_kept_images(
    family: str, tmp_path: Path
) -> None:
    counted, samples = Counted(family), make_samples(MIXES.get(family, (1, 0, 2)))
    plain = counted.vision(None)
    for store in (MemoryStore(2**24), FolderStore(tmp_path, 2**24)):
        vision = counted.vision(store)
        hidden, logits, passes = counted.encode(plain, samples)
        first = counted.encode(vision, samples)
        assert passes == 2
        assert first[2] in (2, 4)  # one or two kinds of pass, each compared with an image alone
        assert torch.equal(first[0], hidden)
        assert torch.equal(first[1], logits)
        *known, passes = counted.encode(vision, samples)
        assert passes == 0
        assert torch.equal(known[0], hidden)  # the same batch was computed
        assert torch.equal(known[1], logits)
        for others in (samples[::-1], samples[2:]):
            *known, passes = counted.encode(vision, others)
            assert passes == 0
            assert_close(tuple(known), counted.encode(plain, others)[:2], **CLOSE)


def test_a_batch_with_a_new_image_is_computed_whole(tmp_path: Path) -> None:
    counted, samples = Counted("llava"), make_samples((1, 1, 1))
    plain, vision = counted.vision(None), counted.vision(FolderStore(tmp_path, 2**24))
    counted.encode(vision, samples[:2])
    files = set(tmp_path.rglob("*.safetensors"))
    hidden, logits, passes = counted.encode(vision, samples)
    assert passes == 1
    assert torch.equal(hidden, counted.encode(plain, samples)[0])
    assert torch.equal(logits, counted.encode(plain, samples)[1])
    assert len(files) == 2
    assert len(set(tmp_path.rglob("*.safetensors")) - files) == 1


def test_only_hidden_states_that_the_model_reads_are_kept() -> None:
    counted, samples = Counted("llava"), make_samples((1,))
    kept: list[Any] = []

    class Store(MemoryStore):
        def put(self, key: str, entry: Any) -> None:
            kept.append(entry)

    counted.encode(counted.vision(Store(1)), samples)
    for entry in kept:
        assert len(entry) == 3  # with the last hidden state and the pooled one


def test_another_weight_precision_or_argument_is_another_entry() -> None:
    counted, samples = Counted("llava"), make_samples((1,))
    vision = counted.vision(MemoryStore(2**24))
    counted.encode(vision, samples)
    counted.encode(vision, samples)
    assert counted.passes == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert counted.encode(vision, samples)[2] == 1
    inputs = make_batch(counted.backbone, samples).inputs
    with torch.no_grad(), vision.cached():
        counted.passes = 0
        for option in (True, True, False):
            vision._encoder(inputs["pixel_values"], output_hidden_states=option)
    assert counted.passes == 2
    encoder = counted.backbone.model.get_submodule(counted.backbone.parts.vision)
    with torch.no_grad():
        next(encoder.parameters()).mul_(2)
    hidden, _, passes = counted.encode(vision, samples)
    assert passes == 1
    assert torch.equal(hidden, counted.encode(counted.vision(None), samples)[0])


@pytest.mark.parametrize("inference", [True, False])
def test_kept_outputs_serve_passes_with_gradients(inference: bool) -> None:
    counted, samples = Counted("llava"), make_samples((1, 1))
    vision, batch = counted.vision(MemoryStore(2**24)), make_batch(counted.backbone, samples)
    with torch.inference_mode(inference), vision.cached():
        counted.backbone.outputs(batch.inputs)
    projector = next(b for b in counted.backbone.blocks if b.modality == "projector")
    weight = counted.backbone.model.get_submodule(projector.linears[0]).weight
    weight.requires_grad_(True)
    gradients = []
    for each in (vision, counted.vision(None)):
        counted.passes = 0
        with each.cached():
            counted.backbone.answer_output(batch.inputs, batch.targets).loss().backward()
        gradients.append(weight.grad)
        weight.grad = None
        assert counted.passes == (each is not vision)
    assert torch.equal(*gradients)


def test_live_experts_trained_weights_and_dropout_run_the_encoder() -> None:
    counted, samples = Counted("llava"), make_samples((1, 1))
    backbone, library, vision = (
        counted.backbone,
        counted.library,
        counted.vision(MemoryStore(2**24)),
    )
    linears = [p for b in backbone.blocks if b.modality == "vision" for p in b.linears]
    library.add("a", dict.fromkeys(linears, 2), dict.fromkeys(linears, 4.0))
    randomize(library, "a")
    gates = Gates(("a",), torch.ones(2, 1), torch.ones(2, dtype=torch.long), None)
    plain = counted.encode(counted.vision(None), samples, gates)
    counted.encode(vision, samples)
    hidden, logits, passes = counted.encode(vision, samples, gates)
    assert passes == 2
    assert torch.equal(hidden, plain[0])
    assert torch.equal(logits, plain[1])
    assert counted.encode(vision, samples)[2] == 0
    vision._drops = True
    backbone.train()
    assert counted.encode(vision, samples)[2] == 2
    vision._drops = False
    next(backbone.model.get_submodule(backbone.parts.vision).parameters()).requires_grad_(True)
    inputs = make_batch(backbone, samples).inputs
    counted.passes = 0
    with vision.cached():
        backbone.outputs(inputs)
    assert counted.passes == 1


class Joint(nn.Module):
    """Gives each image the mean of the batch, or a number without images."""

    def __init__(self, encoder: nn.Module, whole: bool) -> None:
        super().__init__()
        self.encoder, self.whole = encoder, whole

    def forward(self, pixel_values: Tensor, **options: Any) -> Any:
        output = self.encoder(pixel_values, **options)
        hidden = output.last_hidden_state
        mean = hidden.mean() if self.whole else hidden.mean(0, keepdim=True).expand_as(hidden)
        output["last_hidden_state"] = mean
        return output


def replace_encoder(backbone: Backbone, whole: bool) -> None:
    parent, _, name = backbone.parts.vision.rpartition(".")
    encoder = Joint(backbone.model.get_submodule(backbone.parts.vision), whole)
    setattr(backbone.model.get_submodule(parent), name, encoder)


@pytest.mark.parametrize(
    ("whole", "reason"),
    [
        (True, r"its output.last_hidden_state \(\) cannot be split by image"),
        (False, "its output.last_hidden_state for an image depends on the other images"),
    ],
)
def test_an_encoder_whose_output_cannot_be_split_is_refused(whole: bool, reason: str) -> None:
    counted, samples = Counted("llava"), make_samples((1, 1))
    replace_encoder(counted.backbone, whole)
    vision = counted.vision(MemoryStore(2**24))
    inputs = make_batch(counted.backbone, samples).inputs
    with (
        pytest.raises(ValueError, match=f"^model.cache_vision must be off for Joint: {reason}$"),
        torch.no_grad(),
        vision.cached(),
    ):
        counted.backbone.outputs(inputs)
    assert "forward" not in vars(vision._encoder)


def test_a_damaged_file_is_computed_again_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counted, samples = Counted("llava"), make_samples((1,))
    vision = counted.vision(FolderStore(tmp_path, 2**24))
    hidden, logits, _ = counted.encode(vision, samples)
    files = list(tmp_path.rglob("*.safetensors"))
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[:-9] + bytes(9))
    found = counted.encode(vision, samples)
    assert found[2] == 1
    assert torch.equal(found[0], hidden)
    assert torch.equal(found[1], logits)
    (record,) = caplog.records
    assert f"{files[0]} is damaged and is made again" in record.getMessage()
    assert files[0].read_bytes() == whole


def test_a_full_disk_ends_the_keeping_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dmole.data.image_store.write_tensor_file", full)
    counted, samples = Counted("llava"), make_samples((1, 1))
    vision = counted.vision(vision_store("disk", 2**24, str(tmp_path)))
    for _ in range(2):
        hidden = counted.encode(vision, samples)[0]
    assert torch.equal(hidden, counted.encode(counted.vision(None), samples)[0])
    (record,) = caplog.records
    assert record.getMessage() == (
        f"no further outputs of the vision encoder are kept in {tmp_path}: No space left on device"
    )


def test_other_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model.cache_vision must be off, ram or disk, got 'on'"):
        vision_store("on", 1, None)
    with pytest.raises(ValueError, match=r"model.cache_vision_bytes must be at least 1, got 0"):
        vision_store("ram", 0, None)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"model.cache_vision_folder .*file cannot be made"):
        vision_store("disk", 1, str(tmp_path / "file"))
    assert vision_store(False, 1, None) is None
