"""A finished run loaded in Python answers as its own evaluation did, and without Lightning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import dmole
from dmole.data import FileImage, Sample, Turn
from dmole.inference import Request, RoutedModel
from dmole.run.loading import build_data
from dmole.run.model_file import read_run_settings
from dmole.storage.predictions import predicted_stages, read_stage


@pytest.fixture(scope="module")
def model(quick_run: Path) -> RoutedModel:
    return dmole.load(quick_run)


@pytest.fixture(scope="module")
def answered(quick_run: Path) -> list[tuple[Sample, dict[str, str]]]:
    """Return the test samples of all tasks, mixed, with the run's last predictions."""
    data = build_data(read_run_settings(quick_run))
    lines = read_stage(quick_run, predicted_stages(quick_run)[-1])
    rows = [zip(data.test_samples(task), lines[task], strict=True) for task in data.task_names]
    return [pair for group in zip(*rows, strict=True) for pair in group]


def test_mixed_requests_in_one_batch_get_the_answers_and_experts_of_the_run(
    model: RoutedModel, answered: list[tuple[Sample, dict[str, str]]]
) -> None:
    requests = [Request(sample.turns, sample.images, max_new_tokens=4) for sample, _ in answered]
    answers = model.answer(requests)
    found = [("+".join(answer.experts) or "base", answer.text) for answer in answers]
    assert found == [(line["gate_set"], line["prediction"]) for _, line in answered]
    assert len({gate_set for gate_set, _ in found}) > 1


def test_each_request_has_its_own_length_and_its_own_experts(
    model: RoutedModel, answered: list[tuple[Sample, dict[str, str]]]
) -> None:
    sample = answered[0][0]
    choices: list[tuple[str, ...] | None] = [(), (model.experts[0],), (model.experts[1],), None]
    requests = [
        Request(sample.turns, sample.images, max_new_tokens=tokens, experts=experts)
        for experts in choices
        for tokens in (1, 3)
    ]
    together = model.answer(requests)
    assert together == [model.answer([request])[0] for request in requests]
    assert [answer.new_tokens for answer in together[::2]] == [1] * len(choices)
    assert [answer.experts for answer in together[:6:2]] == choices[:3]


def test_pieces_of_text_make_up_the_answer_and_a_request_can_be_cancelled(
    model: RoutedModel, answered: list[tuple[Sample, dict[str, str]]]
) -> None:
    requests = [Request(sample.turns, sample.images, 6) for sample, _ in answered[:4]]
    whole = model.answer(requests)
    pieces: dict[int, list[str]] = {index: [] for index in range(4)}

    def on_text(index: int, piece: str) -> bool:
        pieces[index].append(piece)
        return index != 2

    again = model.answer(requests, on_text)
    for index, (answer, streamed) in enumerate(zip(whole, again, strict=True)):
        if index == 2 and len(pieces[2]) and whole[2].new_tokens > 2:
            assert streamed.finish_reason == "cancelled"
            assert streamed.new_tokens < answer.new_tokens
        else:
            assert "".join(pieces[index]) == answer.text == streamed.text


def test_a_route_states_losses_below_the_thresholds_of_the_chosen_experts(
    model: RoutedModel, answered: list[tuple[Sample, dict[str, str]]], tmp_path: Path
) -> None:
    for index, (sample, line) in enumerate(answered[:6]):
        picture = sample.images[0].load()
        picture.save(tmp_path / f"{index}.png")
        route = model.route(images=picture, prompt=sample.prompt)
        assert route == model.route(images=tmp_path / f"{index}.png", prompt=sample.prompt)
        assert "+".join(route.experts) in (line["gate_set"], "")
        accepted = {n for n, loss in route.losses.items() if loss < route.thresholds[n]}
        assert set(route.experts) <= accepted
        assert list(route.losses) == list(model.experts)


def test_generate_takes_one_prompt_or_a_list(
    model: RoutedModel, answered: list[tuple[Sample, dict[str, str]]]
) -> None:
    prompts = [sample.prompt for sample, _ in answered[:3]]
    pictures = [sample.images[0].load() for sample, _ in answered[:3]]
    texts = model.generate(pictures, prompts, max_new_tokens=3)
    assert texts == [
        model.generate(picture, prompt, max_new_tokens=3)
        for picture, prompt in zip(pictures, prompts, strict=True)
    ]
    forced = model.generate(pictures[0], prompts[0], expert=model.experts[0], max_new_tokens=3)
    assert isinstance(forced, str)
    with pytest.raises(ValueError, match=r"3 prompts need as many entries of images, got 2"):
        model.generate(pictures[:2], prompts)
    with pytest.raises(ValueError, match=r"there is no expert 'other'; the experts are"):
        model.generate(pictures[0], prompts[0], expert="other")


def test_a_model_with_one_expert_in_memory_gives_the_same_answers(
    quick_run: Path, answered: list[tuple[Sample, dict[str, str]]]
) -> None:
    model = dmole.load(quick_run)
    residency = model.limit_memory(max_loaded=1)
    found = []
    for sample, _ in answered[:8]:
        answer = model.answer([Request(sample.turns, sample.images, max_new_tokens=4)])[0]
        found.append(("+".join(answer.experts) or "base", answer.text))
        assert len(residency.loaded) <= 1
    assert found == [(line["gate_set"], line["prediction"]) for _, line in answered[:8]]
    assert residency.loads > 1
    assert len(residency.activity) == 8


def test_an_image_that_cannot_be_read_and_a_long_prompt_are_one_line(
    model: RoutedModel, tmp_path: Path
) -> None:
    requests = [
        Request(model_turns("fine")),
        Request(model_turns("<image>\nwhat?"), (FileImage(tmp_path / "none.png"),)),
    ]
    with pytest.raises(ValueError, match=r"^request 1: .*cannot read image .*none.png") as error:
        model.answer(requests)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"request 0: .* tokens, more than max_length"):
        model.answer([Request(model_turns("word " * 10_000))])


def model_turns(text: str) -> tuple[Turn, ...]:
    return (Turn("user", text),)


def test_a_damaged_run_and_a_moved_base_model_are_refused_or_found(
    quick_run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(quick_run, copy)
    tiny = Path(dmole.load(copy).backbone.name_or_path)
    moved = shutil.copytree(tiny, tmp_path / "elsewhere")
    assert dmole.load(copy, base=moved).experts == dmole.load(copy).experts
    settings = json.loads((copy / "model.json").read_text())
    settings["model"]["backbone"]["settings"]["name_or_path"] = str(tmp_path / "gone")
    (copy / "model.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"model.json: cannot load the base model .*gone"):
        dmole.load(copy)
    with pytest.raises(ValueError, match=r"model.json"):  # its digest is another one now
        dmole.load(copy, base=moved)


def test_an_expert_that_leaves_and_joins_again_leaves_no_trace(
    quick_run: Path, answered: list[tuple[Sample, dict[str, str]]]
) -> None:
    model = dmole.load(quick_run)
    requests = [Request(sample.turns, sample.images, 4) for sample, _ in answered[:8]]
    before, last = model.answer(requests), model.experts[-1]
    model.remove_expert(last)
    without = model.answer(requests)
    assert all(last not in answer.experts for answer in without)
    for answer, earlier in zip(without, before, strict=True):
        if last not in earlier.experts:
            assert (answer.text, answer.experts) == (earlier.text, earlier.experts)
    model.add_expert(quick_run, last)
    assert model.answer(requests) == before
    with pytest.raises(ValueError, match=f"the model has an expert '{last}' already"):
        model.add_expert(quick_run, last)
    with pytest.raises(ValueError, match="has no expert 'other' that is in use"):
        model.add_expert(quick_run, "other")


def test_an_expert_of_a_damaged_run_does_not_join(quick_run: Path, tmp_path: Path) -> None:
    model = dmole.load(quick_run)
    last = model.experts[-1]
    model.remove_expert(last)
    left, copy = model.experts, shutil.copytree(quick_run, tmp_path / "run")
    file = copy / "router" / f"{last}.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=rf"{last}.safetensors: it is damaged"):
        model.add_expert(copy, last)
    assert model.experts == left == model.router.fitted  # type: ignore[attr-defined]
