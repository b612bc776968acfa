"""Loading processors without the packages that only videos need."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.models.smolvlm.processing_smolvlm as smolvlm
from families import make_batch, make_processor, make_samples
from families.saved import save_family
from transformers import ProcessorMixin

from dmole.data.batch import Batch
from dmole.data.collate import Collator
from dmole.demo.tiny import TINY_PATH
from dmole.models import PretrainedBackbone
from dmole.models import processors as loading
from dmole.models.processors import load_processor, set_image_settings, without_video


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family("qwen2_vl", tmp_path_factory.mktemp("qwen2_vl"))


def collate(processor: ProcessorMixin) -> Batch:
    return Collator(processor)([(s, "t") for s in make_samples((1, 0, 2))], generation=False)


@pytest.fixture(params=[False, True], ids=["no torchvision", "torchvision"])
def _torchvision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand for a machine with the package or without, which must not change what is loaded."""
    monkeypatch.setattr("transformers.utils.is_torchvision_available", lambda: request.param)


@pytest.mark.usefixtures("_torchvision")
def test_a_processor_that_could_read_videos_is_loaded_for_images(qwen: Path) -> None:
    processor = load_processor(str(qwen), "pil")
    assert type(processor).__name__ == "Qwen2VLProcessor"
    assert isinstance(processor, __import__("transformers").Qwen2VLProcessor)
    expected = collate(make_processor("qwen2_vl")).inputs
    for key, value in collate(processor).inputs.items():
        assert torch.equal(value, expected[key])


@pytest.mark.usefixtures("_torchvision")
def test_the_files_of_older_repositories_are_read(qwen: Path, tmp_path: Path) -> None:
    """Published models keep image settings in a file of their own, and another name."""
    for file in qwen.iterdir():
        if file.name != "processor_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = json.loads((qwen / "processor_config.json").read_text())
    images = whole["image_processor"] | {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen2VLProcessor",
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    expected = collate(load_processor(str(qwen))).inputs
    for key, value in collate(load_processor(str(tmp_path))).inputs.items():
        assert torch.equal(value, expected[key])


def test_a_processor_without_video_can_be_sent_to_a_worker_and_saved(tmp_path: Path) -> None:
    processor = make_processor("internvl")
    copy = pickle.loads(pickle.dumps(processor))
    assert type(copy).__name__ == "InternVLProcessor"
    assert torch.equal(
        collate(copy).inputs["pixel_values"], collate(processor).inputs["pixel_values"]
    )
    copy.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text())["image_seq_length"] == 4


def test_only_the_video_part_is_left_out() -> None:
    assert make_processor("llava_onevision").get_attributes() == ["image_processor", "tokenizer"]
    base = type(make_processor("smolvlm")).__mro__[1]
    assert base.get_attributes() == ["image_processor", "tokenizer", "video_processor"]
    assert without_video(base).get_attributes() == ["image_processor", "tokenizer"]


def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_family("smolvlm", tmp_path)
    monkeypatch.setattr(smolvlm, "num2words", None)
    with pytest.raises(ValueError, match=r"needs the package num2words: pip install 'dmole\[smol"):
        PretrainedBackbone(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("X requires the Torchvision\nlibrary", r"package torchvision: pip install 'dmole\[torch"),
        ("X requires\nsentencepiece", "cannot load the processor of 'a/b': X requires sentencep"),
    ],
)
def test_what_a_processor_lacks_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    class Lacking:
        @staticmethod
        def from_pretrained(*_: Any, **__: Any) -> None:
            raise ImportError(text)

    monkeypatch.setattr(loading, "_video_class", lambda *_: Lacking)
    with pytest.raises(ValueError, match=message) as caught:
        load_processor("a/b")
    assert "\n" not in str(caught.value)


def test_image_settings_change_the_number_of_image_tokens(qwen: Path) -> None:
    small = PretrainedBackbone(str(qwen), image_settings={"max_pixels": 128})
    large = PretrainedBackbone(str(qwen), image_settings={"max_pixels": 1024})
    counts = [
        make_batch(b, make_samples((1,))).inputs["pixel_values"].shape[0] for b in (small, large)
    ]
    assert counts[0] < counts[1]


def test_image_settings_win_over_what_a_processor_class_sets_for_every_call() -> None:
    processor = make_processor("internvl")
    assert collate(processor).inputs["pixel_values"].shape[0] > 3
    set_image_settings(processor, {"crop_to_patches": False})
    assert collate(processor).inputs["pixel_values"].shape[0] == 3
    other = make_processor("internvl")  # is as before
    assert collate(other).inputs["pixel_values"].shape[0] > 3


def test_an_unknown_image_setting_is_answered_with_those_there_are(qwen: Path) -> None:
    with pytest.raises(ValueError, match=r"'max_pixel' is unknown to Qwen2VL.*max_pixels, merge_s"):
        PretrainedBackbone(str(qwen), image_settings={"max_pixel": 128})


@pytest.mark.parametrize(
    "defaults",
    [
        {"truncation": True, "max_length": 9, "stride": 3},
        {"do_resize": False, "size": {"height": 32, "width": 32}, "image_mean": [0.1, 0.1, 0.1]},
        {"return_attention_mask": False},
        {"padding": "max_length", "padding_side": "right", "return_tensors": "np"},
    ],
)
def test_the_config_of_a_tokenizer_changes_neither_texts_nor_images(
    tmp_path: Path, defaults: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(TINY_PATH, tmp_path / "model"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | defaults))
    batches = []
    for source in (TINY_PATH, folder):
        items = [(sample, "t") for sample in make_samples((1, 0))]
        batches.append(Collator(load_processor(str(source)))(items, generation=False))
    assert batches[0].inputs.keys() == batches[1].inputs.keys()
    for name, tensor in batches[0].inputs.items():
        assert torch.equal(tensor, batches[1].inputs[name])


def test_an_image_backend_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, default = load_processor(str(TINY_PATH), "pil"), load_processor(str(TINY_PATH))
    assert chosen.image_processor.backend == "pil"
    assert chosen.to_dict() == default.to_dict()
    assert chosen.tokenizer.backend == default.tokenizer.backend == "tokenizers"
    monkeypatch.setattr("transformers.PilBackend.backend", "opencv", raising=False)
    with pytest.raises(ValueError, match=r"image_backend pil is not available.* has opencv"):
        load_processor(str(TINY_PATH), "pil")


def test_a_folder_with_an_adapter_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TINY_PATH, tmp_path / "model"))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model': the folder holds a PEFT adapter") as caught:
        PretrainedBackbone(str(folder))
    assert "\n" not in str(caught.value)
