"""Finding the parts, layers and linears of a model by name, and overriding what is found."""

from __future__ import annotations

import pytest
from families import MODEL_FAMILIES, make_backbone
from torch import nn

from dmole.models import Parts, Patterns, discover


def block(width: int = 4) -> nn.ModuleDict:
    return nn.ModuleDict({"attn": nn.Linear(width, width), "mlp": nn.Linear(width, width)})


def toy(
    vision: str = "vision_tower",
    language: str = "language_model",
    projector: str = "multi_modal_projector",
) -> nn.Module:
    """``model.<parts>`` and ``lm_head``, as in transformers."""
    model = nn.Module()
    model.model = nn.Module()
    model.model.add_module(vision, nn.ModuleDict({"layers": nn.ModuleList([block(), block()])}))
    if projector:
        model.model.add_module(projector, nn.ModuleDict({"fc": nn.Linear(4, 4)}))
    model.model.add_module(language, nn.ModuleDict({"layers": nn.ModuleList([block()] * 1)}))
    model.lm_head = nn.Linear(4, 9)
    return model


@pytest.mark.parametrize("family", MODEL_FAMILIES)
def test_two_vision_and_two_language_blocks_and_the_projector_are_found(family: str) -> None:
    backbone = make_backbone(family)
    names = [block.name for block in backbone.blocks]
    assert names == ["vision.0", "vision.1", "projector.0", "language.0", "language.1"]
    assert [block.modality for block in backbone.blocks] == [name.split(".")[0] for name in names]
    for layer in backbone.blocks:
        assert layer.linears
        for path in layer.linears:
            assert isinstance(backbone.model.get_submodule(path), nn.Linear)
            assert path.startswith(layer.path)
            assert backbone.parts.modality_of(path) == layer.modality
    ends = {path.rpartition(".")[2] for path in backbone.blocks[-1].linears}
    assert ends == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    ends = {path.rpartition(".")[2] for path in backbone.blocks[0].linears}
    assert ends == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    everything = [path for block in backbone.blocks for path in block.linears]
    assert len(everything) == len(set(everything))
    assert not any("lm_head" in path for path in everything)


@pytest.mark.parametrize(
    ("vision", "language", "projector"),
    [
        ("vision_tower", "language_model", "multi_modal_projector"),
        ("vision_model", "text_model", "connector"),
        ("visual", "language_model", "aligner"),
    ],
)
def test_modalities_are_recognized_by_the_usual_names(
    vision: str, language: str, projector: str
) -> None:
    parts = discover(toy(vision, language, projector))
    assert parts.vision == f"model.{vision}"
    assert parts.language == f"model.{language}"
    assert parts.projector == (f"model.{projector}",)


def test_mergers_inside_the_vision_module_are_the_projector_and_no_layers() -> None:
    model = toy("visual", projector="")
    model.model.visual["merger"] = nn.ModuleDict({"fc": nn.Linear(4, 4)})
    model.model.visual["deepstack_merger_list"] = nn.ModuleList([block(), block()])
    parts = discover(model)
    assert parts.projector == ("model.visual.merger", "model.visual.deepstack_merger_list")
    assert [block.name for block in parts.blocks] == [
        "vision.0",
        "vision.1",
        "projector.0",
        "projector.1",
        "language.0",
    ]
    assert parts.modality_of("model.visual.merger.fc") == "projector"
    assert parts.modality_of("model.visual.layers.0.attn") == "vision"


def test_a_modality_with_two_lists_of_blocks_continues_the_numbering() -> None:
    model = toy()
    model.model.vision_tower["global_layers"] = nn.ModuleList([block()])
    names = [block.name for block in discover(model).blocks if block.modality == "vision"]
    assert names == ["vision.0", "vision.1", "vision.2"]


def test_lists_of_linears_inside_a_block_are_part_of_the_block() -> None:
    model = toy()
    model.model.language_model["layers"][0]["parts"] = nn.ModuleList([nn.Linear(4, 4)])
    (layer,) = [spec for spec in discover(model).blocks if spec.modality == "language"]
    assert layer.linears == tuple(
        f"model.language_model.layers.0.{name}" for name in ("attn", "mlp", "parts.0")
    )


def test_lists_without_linears_are_no_layers() -> None:
    model = toy()
    model.model.vision_tower["norms"] = nn.ModuleList([nn.LayerNorm(4)])
    assert len([x for x in discover(model).blocks if x.modality == "vision"]) == 2


def test_modules_without_parameters_are_no_projector() -> None:
    model = toy()
    model.model.dropout = nn.Dropout()
    assert discover(model).projector == ("model.multi_modal_projector",)


def test_overrides_name_the_parts_of_an_unknown_family() -> None:
    model = toy("eye", "brain", "nerve")
    parts = discover(model, Patterns(vision=r"\.eye$", language=r"\.brain$"))
    assert (parts.vision, parts.language) == ("model.eye", "model.brain")
    assert parts.projector == ("model.nerve",)
    parts = discover(
        model, Patterns(vision=r"\.eye$", language=r"\.brain$", projector=r"\.nerve\.fc$")
    )
    assert parts.projector == ("model.nerve.fc",)


def test_overrides_narrow_layers_and_linears() -> None:
    parts = discover(toy(), Patterns(layers=r"layers\.0$", linears="attn$"))
    assert [(block.name, block.linears) for block in parts.blocks] == [
        ("vision.0", ("model.vision_tower.layers.0.attn",)),
        ("language.0", ("model.language_model.layers.0.attn",)),
    ]


@pytest.mark.parametrize(
    ("model", "patterns", "message"),
    [
        (toy("eye"), None, "no vision part found in Module; set patterns.vision"),
        (toy(language="brain"), None, "no language part found in Module; set patterns.language"),
        (toy(), Patterns(vision="^nothing$"), "searched /\\^nothing\\$/"),
        (toy(), Patterns(layers="^nothing$"), "no blocks with linears below 'model.vision_tower'"),
        (toy(), Patterns(linears="^nothing$"), "no blocks with linears below"),
    ],
)
def test_a_part_that_is_not_found_names_the_override_to_set(
    model: nn.Module, patterns: Patterns | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        discover(model, patterns)


def test_a_path_outside_of_all_parts_is_refused() -> None:
    parts = Parts("a.vision", ("a.nerve",), "a.text")
    assert parts.modality_of("a.nerve.fc") == "projector"
    for path in ("lm_head", "a.vision2.fc", "a"):
        with pytest.raises(ValueError, match=f"submodule '{path}' is in no part"):
            parts.modality_of(path)


def test_a_pattern_that_is_no_regular_expression_is_named() -> None:
    with pytest.raises(ValueError, match=r"patterns\.vision '\(' is no pattern"):
        Patterns(vision="(")
