"""An expert that all tasks share answers beside those that a request names, and never alone."""

from __future__ import annotations

import pytest
import torch
from raw_requests import chat, message, send
from serving_runs import served
from torch import nn

from dmole import PretrainedBackbone
from dmole.experts.shape import ExpertShape
from dmole.inference import RoutedModel, make_request
from dmole.routing import CommonExpertRouter, CommonMixing, OracleRouter

PAINT = ("paint", "common")


@pytest.fixture(scope="module")
def model() -> RoutedModel:
    backbone = PretrainedBackbone("tiny")
    model = RoutedModel(backbone, CommonExpertRouter(OracleRouter(), CommonMixing()))
    linears = [
        name
        for name, part in backbone.model.named_modules()
        if isinstance(part, nn.Linear) and name.endswith("down_proj")
    ]
    torch.manual_seed(0)
    for name, heads in {"common": 2, "paint": 0, "count": 0}.items():
        shape = ExpertShape(4, 8.0, heads=heads)
        model.library.add_shapes(name, dict.fromkeys(linears, shape))
        for _, parameter in model.library.parameters(name):
            nn.init.normal_(parameter, std=0.5)
    return model


def test_an_expert_answers_the_same_alone_and_beside_others_in_a_batch(model: RoutedModel) -> None:
    def ask(*batch: tuple[str, ...]) -> list[tuple[str, tuple[str, ...]]]:
        requests = [make_request("how many ?", max_new_tokens=8, experts=names) for names in batch]
        return [(answer.text, answer.experts) for answer in model.answer(requests)]

    [paint], [pair], [base] = ask(("paint",)), ask(PAINT), ask(())
    assert paint == pair == (paint[0], PAINT)
    assert base[0] != paint[0]
    assert ask(("count",), ("paint",), ()) == [*ask(("count",)), paint, base]
    assert model.expert_names("paint") == PAINT
    assert model.expert_names("base") == ()
    with pytest.raises(ValueError, match="'common' answers only together with the expert of a"):
        ask(("common",))


def test_the_common_expert_is_no_model_of_the_server(model: RoutedModel) -> None:
    with served(model) as server:
        with server.client() as client:
            assert [entry.id for entry in client.models.list()] == [
                "auto",
                "base",
                "paint",
                "count",
            ]
            assert client.models.retrieve("paint").id == "paint"
        status, content = send(server, {**chat(max_tokens=2), "model": "paint"})
        assert (status, content["dmole"]["experts"]) == (200, list(PAINT))
        text = message(server, {**chat(), "model": "common"})
        assert text == "expert 'common' answers only together with the expert of a task"
        text = message(server, {**chat(), "model": "none"}, status=404)
        assert "there are auto, base, paint, count, and" in text
