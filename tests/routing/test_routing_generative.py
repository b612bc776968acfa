"""The router that asks the base model: names, questions, the constrained choice, its files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from families import all_linears, make_backbone, make_samples, randomize

from dmole.data import Sample, Turn
from dmole.data.collate import Collator
from dmole.experts import ExpertLibrary, ExpertShape
from dmole.models.naming import ADAPTER, adapter_gates, name_experts, placed_adapter
from dmole.routing import CommonExpertRouter, CommonMixing, GenerativeRouter, NameTree, RouteQuery
from dmole.routing.entries import add_entry, rename_entry, take_out
from dmole.run.learned import _check_router

LABELS = {"count": (7, 2), "color": (7, 5, 2), "find": (9, 2)}


def make_router(**labels: tuple[int, ...]) -> GenerativeRouter:
    router = GenerativeRouter()
    router.labels = labels or dict(LABELS)
    router.adapter = {"x.lora_a": torch.randn(2, 3), "x.lora_b": torch.randn(4, 2)}
    router.alpha = 4.0
    return router


def test_generation_may_only_follow_the_names() -> None:
    tree = NameTree(LABELS)
    assert tree.allowed(()) == [7, 9]
    assert tree.allowed((7,)) == [2, 5]
    assert tree.allowed((7, 5)) == tree.allowed((7, 5, 2)) == [2]
    assert tree.depth == 2
    assert [tree.name(t) for t in ((9, 1), (7, 2, 0), (7, 5))] == ["find", "count", "color"]
    assert NameTree({"a": (3, 2), "b": (4, 2)}).depth == 1
    for tokens in ((), (7,), (8, 2)):
        with pytest.raises(ValueError, match="name no expert"):
            tree.name(tokens)
    with pytest.raises(ValueError, match="cannot tell the names 'a' and 'b' apart"):
        NameTree({"a": (3,), "b": (3, 2)})


def test_the_question_follows_the_first_user_turn_and_its_images_alone() -> None:
    images = make_samples((2,))[0].images
    turns = (
        *(Turn("system", "Be brief."), Turn("user", "<image>\nHow many?"), Turn("assistant", "2")),
        Turn("user", "<image>\nAnd here?"),
    )
    asked = GenerativeRouter(question="Which?").asked(Sample("s", turns, images, ("3",)))
    assert asked.turns == (turns[0], Turn("user", "<image>\nHow many?\nWhich?"))
    assert (asked.id, asked.images, asked.references) == ("s", images[:1], ("3",))
    learned = GenerativeRouter(question="Which?").asked(Sample("s", turns, images), "count")
    assert learned.turns == (*asked.turns, Turn("assistant", "count"))


def test_the_named_expert_answers_in_its_newest_version() -> None:
    router = make_router()
    experts = ["count", "color", "find", "new"]
    query = RouteQuery(None, ["?", "?"], "test", None, experts, named=["find", "count"])
    assert router.asks(query)
    assert router.route(query).order == [("find",), ("count",)]
    router.add_update("new", "find")
    assert router.route(query).order == [("new",), ("count",)]
    with pytest.raises(ValueError, match="needs the model's answer for each sample"):
        router.route(RouteQuery(None, ["?"], "test", None, experts))
    own = RouteQuery(None, ["?"], "train", "new", experts)
    assert not router.asks(own)
    assert router.route(own).order == [("new",)]
    for known, order in ((["color", "new"], ("color",)), (["new"], ())):
        alone = RouteQuery(None, ["?"], "test", None, known)
        assert not router.asks(alone)
        assert router.route(alone).order == [order]


@pytest.mark.parametrize("family", ["llava", "idefics3"])
def test_names_of_one_token_are_chosen_by_their_likelihood_under_the_adapter(family: str) -> None:
    backbone = make_backbone(family)
    library = ExpertLibrary(backbone.model, backbone.parts.modality_of)
    shapes = dict.fromkeys(all_linears(backbone), ExpertShape(2, 4.0))
    with placed_adapter(library, shapes):
        assert not library.names
        randomize(library, ADAPTER)
        adapter = library.state_dict(ADAPTER)
    model, router = SimpleNamespace(backbone=backbone, library=library), GenerativeRouter()
    router.adapter, router.alpha = adapter, 4.0
    router.labels = {str(token): (token, 1) for token in (20, 21, 22, 23)}
    asked = [(router.asked(sample), "a") for sample in make_samples(answers=False)]
    batch = Collator(backbone.processor)(asked, generation=True)
    use = library.context.use(adapter_gates(backbone, batch))
    with placed_adapter(library, router.shapes(), adapter), torch.no_grad(), use:
        logits = backbone.outputs(batch.inputs).logits[:, -1, 20:24]
    with library.context.use(None), torch.no_grad():
        plain = backbone.outputs(batch.inputs).logits[:, -1, 20:24]
    assert not torch.allclose(logits, plain, atol=1e-3)
    ((_, names),) = name_experts(model, router, [batch], list(router.labels))
    assert names == [str(20 + i) for i in logits.argmax(dim=1).tolist()]
    worst = [str(20 + i) for i in logits.topk(3, largest=False).indices[0].tolist()]
    ((_, names),) = name_experts(model, router, [batch], worst)
    assert names[0] == worst[2]
    assert not library.architecture()


def test_a_router_is_saved_and_edited_and_damage_is_refused(tmp_path: Path) -> None:
    router = make_router()
    router.save(tmp_path)
    loaded = GenerativeRouter()
    loaded.load(tmp_path)
    assert loaded.labels == LABELS
    assert loaded.alpha == 4.0
    assert loaded.shapes() == {"x": ExpertShape(2, 4.0)}
    assert all(torch.equal(loaded.adapter[key], value) for key, value in router.adapter.items())
    rename_entry(loaded, "count", "number")
    take_out(loaded, "number")  # the first, which holds the adapter
    assert list(loaded.labels) == ["color", "find"]
    assert loaded.adapter.keys() == router.adapter.keys()
    with pytest.raises(ValueError, match="another adapter"):
        add_entry(loaded, "count", router, "count")
    with pytest.raises(ValueError, match="router state is of"):
        GenerativeRouter(question="What?").load(tmp_path)
    bad = {
        "expected the tokens of its name": {"label": torch.tensor([1.5])},
        "tensor shared.x.other is unknown": {
            "label": torch.tensor([1]),
            "shared.x.other": torch.ones(1),
        },
        "is no matrix": {"label": torch.tensor([1]), "shared.x.lora_a": torch.ones(1)},
        "must hold one number": {"label": torch.tensor([1]), "shared.alpha": torch.ones(2)},
    }
    for message, entry in bad.items():
        with pytest.raises(ValueError, match=message):
            GenerativeRouter().restore({"count": entry})


def test_an_expert_without_a_name_for_the_model_is_refused() -> None:
    _check_router(make_router(), list(LABELS), Path("run"))
    with pytest.raises(ValueError, match="does not know the expert 'new' of the run"):
        _check_router(make_router(), [*LABELS, "new"], Path("run"))


def test_what_cannot_ask_is_refused() -> None:
    with pytest.raises(ValueError, match="does not take a GenerativeRouter"):
        CommonExpertRouter(GenerativeRouter(), CommonMixing())
    with pytest.raises(
        ValueError, match="exemplars, passes and step_samples must be at least 1, got 0, 20"
    ):
        GenerativeRouter(exemplars=0)
